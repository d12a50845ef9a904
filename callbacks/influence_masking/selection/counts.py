"""How many weights a fraction of the candidates is."""

from fractions import Fraction


def exact_count(fraction: float, candidates: int) -> int:
    """Return floor(fraction * candidates), with the fraction as the decimal number that was written.

    The float 0.29 is a little less than 0.29, so that floating-point arithmetic gives 28 of 100.
    """
    return int(Fraction(str(float(fraction))) * candidates)
