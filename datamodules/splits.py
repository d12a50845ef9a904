"""The split protocol: which rows are in head_init, train, dev and eval.

Pure functions of texts, labels, sizes and seed. A row's place is decided by a keyed hash of its text, never by its
position or by a random number generator, so that the same content gives the same splits on every machine and with every
version of every library. `docs/data.md` explains the protocol.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from datamodules.errors import DataError
from datamodules.keys import loose_key, strict_key
from datamodules.overlap import Overlap

PROTOCOL = "3"
"""Part of every fingerprint: increase it whenever the same input is split differently."""

SPLITS = ("head_init", "train", "dev", "eval")


@dataclass(frozen=True)
class SplitSizes:
    """Rows in each split; `eval` is None for all of them."""

    head_init: int
    train: int
    dev: int
    eval: int | None = None


@dataclass(frozen=True)
class Splits:
    """The rows of each split, and what the user should know about the others.

    Attributes:
        rows: for each split the positions in the training pool, or for `eval` in the evaluation rows.
        left_out: why rows of the training pool cannot be drawn, with the number of rows.
        contradictions: texts that are there with different labels.
    """

    rows: dict[str, list[int]]
    left_out: Counter[str]
    contradictions: list[str]


def draw_keys(keys: Iterable[bytes], seed: int | str) -> list[bytes]:
    """Return a 16-byte hash of each key, keyed by `seed`; an empty key stays empty."""
    salt = str(seed).encode()
    return [hashlib.blake2b(key, digest_size=16, key=salt).digest() if key else b"" for key in keys]


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


def candidates(texts: Sequence[str], labels: Sequence[int], keys: Sequence[bytes], num_labels: int) -> list[list[int]]:
    """List, for each class, the rows that may be drawn, in the order in which they are drawn.

    Rows with an empty key are left out. Of rows with the same key the one with the smallest text and label stays, so
    that the order of the rows in the source does not matter.
    """
    by_class: list[list[int]] = [[] for _ in range(num_labels)]
    previous = b""
    for row in sorted(range(len(keys)), key=lambda row: (keys[row], texts[row], labels[row])):
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
) -> Splits:
    """Draw head_init, train and dev from the pool and eval from its own rows.

    The three are disjoint, stratified, without repeated texts (`strict_key`), and give no row of eval away
    (`loose_key`), drawn or not, so that they do not change with `sizes.eval`. In each class dev and then head_init are
    taken from the front of the hashed order and train from its end: a smaller train is part of a larger one, and no
    other split changes. A row that overlaps with a row of dev is passed over in head_init and train.

    Raises:
        DataError: If there are no rows, a label is out of range, an evaluation row has none, or a class has too few
            rows.
    """
    num_labels = len(label_names)
    _check_labels(pool_labels, -1, num_labels, "The training pool")
    _check_labels(eval_labels, 0, num_labels, "The evaluation split")
    pool_keys, eval_keys = list(map(strict_key, pool_texts)), list(map(strict_key, eval_texts))
    left_out = _find_unusable(pool_texts, pool_labels, pool_keys, eval_texts, eval_keys)
    keys = draw_keys((b"" if row in left_out else key for row, key in enumerate(pool_keys)), seed)
    by_class = candidates(pool_texts, pool_labels, keys, num_labels)
    reasons = Counter(left_out.values())
    reasons["repeated"] = len(keys) - len(left_out) - sum(map(len, by_class))
    rows, passed_over = _draw_from_pool(by_class, pool_texts, sizes, label_names)
    reasons["drawn but overlapping with a dev row"] = len(passed_over)
    rows["eval"] = _draw_eval(eval_texts, eval_labels, draw_keys(eval_keys, seed), sizes.eval, label_names)
    contradictions = _find_contradictions(
        [*pool_texts, *eval_texts], [*pool_labels, *eval_labels], pool_keys + eval_keys
    )
    return Splits(rows, +reasons, contradictions)


def _find_unusable(
    texts: Sequence[str],
    labels: Sequence[int],
    keys: Sequence[bytes],
    eval_texts: Sequence[str],
    eval_keys: Sequence[bytes],
) -> dict[int, str]:
    """Return the rows of the pool that cannot be drawn, with the reason."""
    held_out = {loose_key(text) or key for text, key in zip(eval_texts, eval_keys, strict=True)}
    reasons = {}
    for row, (text, label, key) in enumerate(zip(texts, labels, keys, strict=True)):
        if label == -1:
            reasons[row] = "unlabeled"
        elif not key:
            reasons[row] = "without text"
        elif (loose_key(text) or key) in held_out:
            reasons[row] = "matching an eval row"
    return reasons


def _find_contradictions(texts: Sequence[str], labels: Sequence[int], keys: Sequence[bytes]) -> list[str]:
    """Return one text for each key that labeled rows of several classes have."""
    first: dict[bytes, int] = {}
    found: dict[bytes, str] = {}
    for text, label, key in zip(texts, labels, keys, strict=True):
        if key and label != -1 and first.setdefault(key, label) != label:
            found.setdefault(key, text)
    return list(found.values())


def _check_labels(labels: Sequence[int], lowest: int, num_labels: int, where: str) -> None:
    """Refuse no rows, and labels outside `lowest` to `num_labels - 1`."""
    if not labels:
        raise DataError(f"{where} has no rows. Name another split.")
    wrong = sorted({label for label in labels if not lowest <= label < num_labels})
    if wrong:
        raise DataError(
            f"{where} should have labels {lowest} to {num_labels - 1}, but also has {wrong[:5]} "
            "(-1 is an unlabeled row). Name every class in label_names, and evaluate on a labeled split."
        )


def _draw_from_pool(
    by_class: list[list[int]], texts: Sequence[str], sizes: SplitSizes, label_names: Sequence[str]
) -> tuple[dict[str, list[int]], list[int]]:
    """Take dev, head_init and train out of each class's ordered rows; return the rows that were passed over as well."""
    counts = [len(rows) for rows in by_class]
    _check_counts(counts, [1] * len(counts), label_names)
    shares = {split: allocate(getattr(sizes, split), counts) for split in ("head_init", "train", "dev")}
    asked = [sum(parts) for parts in zip(*shares.values(), strict=True)]
    _check_counts(counts, asked, label_names)
    drawn: dict[str, list[int]] = {"head_init": [], "train": [], "dev": []}
    drawn["dev"] = [row for rows, share in zip(by_class, shares["dev"], strict=True) for row in rows[:share]]
    overlap = Overlap(texts[row] for row in drawn["dev"])
    passed_over: list[int] = []
    found = shares["dev"].copy()
    for label, rows in enumerate(by_class):
        left = deque(rows[shares["dev"][label] :])
        for split, take in (("head_init", left.popleft), ("train", left.pop)):
            taken: list[int] = []
            while left and len(taken) < shares[split][label]:
                row = take()
                (passed_over if texts[row] in overlap else taken).append(row)
            drawn[split] += taken if split == "head_init" else taken[::-1]
            found[label] += len(taken)
    _check_counts(found, asked, label_names)
    return drawn, passed_over


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
                "(labeled, not repeated, not in eval, not overlapping with dev). Lower head_init_size, train_size, "
                "dev_size or eval_size."
            )
