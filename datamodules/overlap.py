"""Which texts contain, or lie within, one of a few other texts."""

from collections import defaultdict
from collections.abc import Iterable

from datamodules.keys import strict_key

SHORTEST_SHARED = 3
"""Words of the shorter text at least: two words lie within many texts by chance."""

_PUNCTUATION = ".,;:!?()[]\"'`\u2026\u201c\u201d\u2018\u2019\u00ab\u00bb"


class TextOverlap:
    """An index of texts: whether another text contains one of them, lies within one, or is equal to one.

    Words are compared without case and the punctuation around them. Equal texts may be of any length; where one lies
    within the other it has at least `SHORTEST_SHARED` words. A look-up costs as much as the words of the text it asks
    for, however many texts there are: the first three words of the shorter text are found by hash.

    Args:
        texts: The texts to compare with.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._equal: set[str] = set()
        self._by_start: dict[tuple[str, ...], set[str]] = defaultdict(set)
        self._by_part: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for words in map(split_words, texts):
            joined = _join(words)
            self._equal.add(joined)
            for place, part in enumerate(_parts(words)):
                self._by_part[part].add(joined)
                if place == 0:
                    self._by_start[part].add(joined)

    def __contains__(self, text: str) -> bool:
        """Return whether `text` and one of the texts overlap."""
        words = split_words(text)
        joined, parts = _join(words), _parts(words)
        if not words or joined in self._equal:
            return bool(words)
        around = self._by_part.get(parts[0], ()) if parts else ()
        within = (other for part in parts for other in self._by_start.get(part, ()))
        return any(joined in other for other in around) or any(other in joined for other in within)


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without the punctuation around them."""
    words = (word.strip(_PUNCTUATION) for word in strict_key(text).decode().split())
    return [word for word in words if word]


def _join(words: list[str]) -> str:
    """Return the words with a space on both sides, so that only whole words match."""
    return f" {' '.join(words)} "


def _parts(words: list[str]) -> list[tuple[str, ...]]:
    """Return each run of `SHORTEST_SHARED` words."""
    return list(zip(*(words[start:] for start in range(SHORTEST_SHARED)), strict=False))
