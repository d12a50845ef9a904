from decimal import ROUND_FLOOR, Context, Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence_masking.selection.counts import exact_count


@pytest.mark.parametrize(
    ("fraction", "candidates", "count"),
    [(0.29, 100, 29), (0.57, 100, 57), (0.05, 357_826_560, 17_891_328), (1e-6, 999_999, 0), (1e-6, 1_000_000, 1)],
)
def test_a_fraction_counts_as_the_decimal_number_that_was_written(fraction, candidates, count):
    assert exact_count(fraction, candidates) == exact_count(np.float64(fraction), candidates) == count


@given(st.integers(1, 10**6 - 1), st.integers(1, 6), st.integers(0, 10**12))
def test_the_count_is_that_of_decimal_arithmetic(digits, places, candidates):
    written = Decimal(digits).scaleb(-places)
    exact = Context(prec=60).multiply(written, Decimal(candidates)).to_integral_value(ROUND_FLOOR)
    assert exact_count(float(written), candidates) == exact
