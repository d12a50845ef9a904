"""The split protocol: which rows are in head_init, train, dev and eval.

Pure functions of texts, labels, sizes and seed. A row's place is decided by a keyed hash of its text, never by its
position or by a random number generator, so the same content gives the same splits on every machine and with every
version of every library.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from datamodules.errors import DataError

PROTOCOL = "1"
"""Part of every fingerprint: raise it whenever the same input would be split differently."""

SPLITS = ("head_init", "train", "dev", "eval")

_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
_ASCII_LOWER = bytes(range(256)).lower()
_ASCII_DROPPED = bytes(code for code in range(128) if not chr(code).isalnum())


@dataclass(frozen=True)
class SplitSizes:
    """How many rows each split holds; `eval` is None for all of them."""

    head_init: int
    train: int
    dev: int
    eval: int | None = None


def normalize(text: str) -> bytes:
    """Return the case-folded NFKC letters and digits of `text`: what makes two rows the same."""
    if text.isascii():
        return text.encode().translate(_ASCII_LOWER, _ASCII_DROPPED)
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _NOT_ALPHANUMERIC.sub("", folded).encode()


def draw_keys(texts: Sequence[str], seed: int | str) -> list[bytes]:
    """Return a 16-byte hash of each normalized text, keyed by `seed`; empty where nothing is left of the text."""
    key = str(seed).encode()
    normalized = map(normalize, texts)
    return [hashlib.blake2b(text, digest_size=16, key=key).digest() if text else b"" for text in normalized]


def allocate(size: int, counts: Sequence[int]) -> list[int]:
    """Share `size` among classes of `counts` rows: proportional, largest remainders first, at least one each.

    Args:
        size: rows to share.
        counts: rows found of each class, at least one.

    Returns:
        Rows of each class, summing to `size`. Equal remainders are served in class order.

    Raises:
        DataError: `size` is smaller than the number of classes.
    """
    if size < len(counts):
        raise DataError(
            f"A split of {size} rows cannot hold a row of each of {len(counts)} classes. Ask for more rows."
        )
    total = sum(counts)
    shares = [size * count // total for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda label: -(size * counts[label] % total))
    for label in by_remainder[: size - sum(shares)]:
        shares[label] += 1
    while 0 in shares:
        shares[shares.index(max(shares))] -= 1
        shares[shares.index(0)] += 1
    return shares


def candidates(
    texts: Sequence[str], labels: Sequence[int], keys: Sequence[bytes], excluded: set[bytes], num_labels: int
) -> list[list[int]]:
    """Lists, for each class, the rows that may be drawn, in the order in which they are drawn.

    Left out are unlabelled rows (label -1), rows without a letter or digit, and rows whose key is in `excluded`. Of
    rows with the same normalized text the one with the smallest text and label stays, so the order of the rows in the
    source does not matter.
    """
    usable = [row for row, key in enumerate(keys) if key and labels[row] != -1 and key not in excluded]
    by_class: list[list[int]] = [[] for _ in range(num_labels)]
    previous = b""
    for row in sorted(usable, key=lambda row: (keys[row], texts[row], labels[row])):
        if keys[row] != previous:
            by_class[labels[row]].append(row)
        previous = keys[row]
    return by_class


def draw_splits(
    pool_texts: Sequence[str],
    pool_labels: Sequence[int],
    eval_texts: Sequence[str],
    eval_labels: Sequence[int],
    sizes: SplitSizes,
    seed: int,
    label_names: Sequence[str],
) -> dict[str, list[int]]:
    """Draw head_init, train and dev from the pool and eval from its own rows.

    The three are disjoint, stratified, without duplicates, and share no normalized text with any row of eval, drawn
    or not, so they do not change with `sizes.eval`. In each class head_init and then dev are taken from the front
    of the hashed order and train from its end: a smaller train is part of a larger one, and no other split changes.

    Returns:
        For each split the positions in `pool_texts`, or for `"eval"` in `eval_texts`.

    Raises:
        DataError: there are no rows, a label is out of range, an evaluation row has none, or a class has too few rows.
    """
    num_labels = len(label_names)
    _check_labels(pool_labels, -1, num_labels, "The training pool")
    _check_labels(eval_labels, 0, num_labels, "The evaluation split")
    eval_keys = draw_keys(eval_texts, seed)
    pool_keys = draw_keys(pool_texts, seed)
    by_class = candidates(pool_texts, pool_labels, pool_keys, set(eval_keys), num_labels)
    drawn = _draw_from_pool(by_class, sizes, label_names)
    return drawn | {"eval": _draw_eval(eval_texts, eval_labels, eval_keys, sizes.eval, label_names)}


def _check_labels(labels: Sequence[int], lowest: int, num_labels: int, where: str) -> None:
    """Refuse no rows, and labels outside `lowest` to `num_labels - 1`."""
    if not labels:
        raise DataError(f"{where} has no rows. Name another split.")
    wrong = sorted({label for label in labels if not lowest <= label < num_labels})
    if wrong:
        raise DataError(
            f"{where} should have labels {lowest} to {num_labels - 1}, but also has {wrong[:5]} "
            "(-1 is an unlabelled row). Name every class in label_names, and evaluate on a labelled split."
        )


def _draw_from_pool(by_class: list[list[int]], sizes: SplitSizes, label_names: Sequence[str]) -> dict[str, list[int]]:
    """Cut head_init, dev and train out of each class's ordered rows."""
    counts = [len(rows) for rows in by_class]
    _check_counts(counts, [1] * len(counts), label_names)
    head_init, dev, train = (allocate(size, counts) for size in (sizes.head_init, sizes.dev, sizes.train))
    _check_counts(counts, [sum(parts) for parts in zip(head_init, dev, train, strict=True)], label_names)
    drawn: dict[str, list[int]] = {"head_init": [], "train": [], "dev": []}
    for label, rows in enumerate(by_class):
        drawn["head_init"] += rows[: head_init[label]]
        drawn["dev"] += rows[head_init[label] : head_init[label] + dev[label]]
        drawn["train"] += rows[len(rows) - train[label] :]
    return drawn


def _draw_eval(
    texts: Sequence[str], labels: Sequence[int], keys: Sequence[bytes], size: int | None, label_names: Sequence[str]
) -> list[int]:
    """Return all rows, or a stratified `size` of them, in their own order."""
    if size is None:
        return list(range(len(labels)))
    by_class: list[list[int]] = [[] for _ in label_names]
    for row in sorted(range(len(labels)), key=lambda row: (keys[row], texts[row], labels[row])):
        by_class[labels[row]].append(row)
    counts = [len(rows) for rows in by_class]
    _check_counts(counts, [1] * len(counts), label_names)
    shares = allocate(size, counts)
    _check_counts(counts, shares, label_names)
    return sorted(row for rows, share in zip(by_class, shares, strict=True) for row in rows[:share])


def _check_counts(found: Sequence[int], asked: Sequence[int], label_names: Sequence[str]) -> None:
    """Refuse a draw of more rows of a class than there are."""
    for name, rows, wanted in zip(label_names, found, asked, strict=True):
        if rows < wanted:
            raise DataError(
                f"{wanted} rows of class {name!r} are asked for in all, but only {rows} usable ones are found "
                "(labelled, not repeated, not in eval). Lower head_init_size, train_size, dev_size or eval_size."
            )
