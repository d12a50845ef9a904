"""Mistakes of a user, told in one message without a traceback."""


class UsageError(ValueError):
    """The command line or a configuration asks for something that cannot be done."""


def user_errors() -> tuple[type[Exception], ...]:
    """Every exception that stands for a user's mistake rather than for a fault of ours."""
    from datamodules import DataError
    from influence_masking import MaskingError
    from jsonargparse import ArgumentError
    from modules import BackboneError, StartError

    return UsageError, DataError, MaskingError, BackboneError, StartError, ArgumentError
