"""Mistakes of a user, told in one message without a traceback."""


class UsageError(ValueError):
    """The command line or a configuration asks for something that cannot be done."""


def user_mistake(error: BaseException) -> Exception | None:
    """The user's mistake behind an exception, or None if it is a fault of ours.

    What a constructor raises reaches us wrapped by the argument parser, so the chain of causes is walked.
    """
    from jsonargparse import ArgumentError

    from datamodules import DataError
    from influence_masking import MaskingError
    from modules import BackboneError, StartError

    chain = [error]
    while chain[-1].__cause__:
        chain.append(chain[-1].__cause__)
    kinds = (UsageError, DataError, MaskingError, BackboneError, StartError, ArgumentError)
    return next((link for link in reversed(chain) if isinstance(link, kinds)), None)
