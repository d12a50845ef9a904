"""Mistakes of a user, told in one message without a traceback."""

import errno

UNWRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


class UsageError(ValueError):
    """The command line or a configuration asks for something that cannot be done."""


def user_mistake(error: BaseException) -> Exception | None:
    """The user's mistake behind an exception, or None if it is a fault of ours.

    What a constructor raises reaches us wrapped by the argument parser, so the chain of causes is walked. A folder that
    cannot be written and a full disk are the user's to mend as well.
    """
    from jsonargparse import ArgumentError
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from datamodules import DataError
    from influence_masking import MaskingError
    from modules import BackboneError, CheckpointError, OptionError, StartError

    ours = (UsageError, DataError, MaskingError, BackboneError, CheckpointError, OptionError, StartError)
    chain = chain_of_causes(error)
    told: list[Exception] = [link for link in chain if isinstance(link, ours)]
    told += [link for link in chain if isinstance(link, (ArgumentError, MisconfigurationException))]
    told += [link for link in chain if isinstance(link, OSError) and link.errno in UNWRITABLE and link.filename]
    return told[0] if told else None


def chain_of_causes(error: BaseException) -> list[Exception]:
    """An exception and those it was raised from, the first cause last."""
    chain = [error]
    while chain[-1].__cause__:
        chain.append(chain[-1].__cause__)
    return [link for link in chain if isinstance(link, Exception)]


def printable(text: str) -> str:
    """A text for the terminal, in which what comes from files and names cannot steer it: controls are spelled out."""
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)
