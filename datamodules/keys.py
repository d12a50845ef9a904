"""When two texts count as the same."""

import re
import unicodedata

_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
_ASCII_LOWER = bytes(range(256)).lower()
_ASCII_DROPPED = bytes(code for code in range(128) if not chr(code).isalnum())


def strict_key(text: str) -> bytes:
    """Return `text` without differences in case, white space and Unicode form: rows of one key are repetitions.

    Signs, symbols and marks count: `C++` is not `C#`, 3.5 is not 35, and Hindi vowels, which are marks, are kept.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
    return " ".join(text.lower().split()).encode()


def loose_key(text: str) -> bytes:
    """Return the case-folded letters and digits of `text`; a training row with the key of an eval row gives it away."""
    if text.isascii():
        return text.encode().translate(_ASCII_LOWER, _ASCII_DROPPED)
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _NOT_ALPHANUMERIC.sub("", folded).encode()
