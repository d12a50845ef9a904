"""Mistakes of a user, reported in one message without a traceback."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)

ELSEWHERE = {
    "predict": ", or choose another file by --output",
    "export": ", or choose another folder by --out",
    "report": "",
}
SMALLER = {
    "experiment": "data.batch_size, data.eval_tokens or data.max_length, or for a mask's gradient "
    "model.masking.micro_batch_size: --set [ARM:]KEY=VALUE",
    "predict": "--batch_size.",
    "export": "the memory that other programs take.",
}
"""What to do after a command, where it is not what is to do after `fit`."""


class UsageError(ValueError):
    """The command line or a configuration asks for something that cannot be done."""

    is_user_error = True
    """Marks the errors of all packages that are printed without a traceback."""


def user_mistake(error: BaseException, command: str = "experiment") -> Exception | None:
    """Return the user's mistake behind an exception, or None if it is a fault of ours.

    What a constructor raises reaches us wrapped by the argument parser, so the chain of causes is walked. A folder that
    cannot be written, a full disk and too little memory are the user's to mend as well.
    """
    from jsonargparse import ArgumentError
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    chain = chain_of_causes(error)
    mistakes: list[Exception] = [link for link in chain if getattr(link, "is_user_error", False)]
    mistakes += [link for link in chain if isinstance(link, (ArgumentError, MisconfigurationException))]
    mistakes += [_unwritten(link, command) for link in chain if isinstance(link, OSError) and _is_unwritten(link)]
    mistakes += [_memory_advice(link, command) for link in chain if _is_out_of_memory(link)]
    return mistakes[0] if mistakes else None


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether Python, CUDA or, by a plain RuntimeError, torch's CPU allocator had no memory left."""
    from torch import OutOfMemoryError

    return isinstance(error, MemoryError | OutOfMemoryError) or "can't allocate memory" in str(error)


def _memory_advice(error: Exception, command: str) -> UsageError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    options = "--data.batch_size, --data.eval_tokens, --data.max_length or --model.masking.micro_batch_size."
    return UsageError(f"Out of memory ({reason}). Lower {SMALLER.get(command, options)}")


def _is_unwritten(error: OSError) -> bool:
    """Return whether the disk is full, or a file cannot be written where it should be."""
    return error.errno in FULL or (error.errno in UNWRITABLE and bool(error.filename))


def _unwritten(error: OSError, command: str) -> UsageError:
    elsewhere = ELSEWHERE.get(command, ", or choose another folder by --outputs")
    advice = "Make room" if error.errno in FULL else f"Make it writable{elsewhere}"
    resumes = "; the same command goes on from what is complete" if command == "experiment" else ""
    return UsageError(f"{error}. {advice}{resumes}.")


def chain_of_causes(error: BaseException) -> list[Exception]:
    """Return an exception and those it was raised from, the first cause last."""
    chain = [error]
    while chain[-1].__cause__:
        chain.append(chain[-1].__cause__)
    return [link for link in chain if isinstance(link, Exception)]


def printable(text: str) -> str:
    """Return a text that cannot steer the terminal: control characters, as from files and names, are spelled out."""
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)
