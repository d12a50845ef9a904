"""The split protocol: which rows are in head_init, train, dev and eval.

Pure functions of texts, labels, sizes and seed. A row's place is decided by a keyed hash of its text, never by its
position or by a random number generator, so that the same content gives the same splits on every machine and with every
version of every library. `docs/data.md` explains the protocol.
"""

import hashlib
import itertools
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from datamodules.errors import DataError
from datamodules.keys import loose_key, strict_key
from datamodules.overlap import TextOverlap

PROTOCOL = "4"
"""Part of every fingerprint: increase it whenever the same input is split differently."""

SPLITS = ("head_init", "train", "dev", "eval")


@dataclass(frozen=True)
class SplitSizes:
    """Rows in each split; of `eval` at most so many, None for all of them."""

    head_init: int
    train: int
    dev: int
    eval: int | None = None


@dataclass(frozen=True)
class Splits:
    """The rows of each split, and what the user should know about the others.

    Attributes:
        rows: For each split the positions in the training pool, or for `eval` in the evaluation rows.
        left_out: Why rows of the training pool cannot be drawn, with the number of rows.
        contradictions: Texts that are there with different labels.
    """

    rows: dict[str, list[int]]
    left_out: Counter[str]
    contradictions: list[str]


def draw_keys(keys: Iterable[bytes], seed: int | str) -> list[bytes]:
    """Return a 16-byte hash of each key, keyed by `seed`; an empty key stays empty."""
    salt = str(seed).encode()
    return [hashlib.blake2b(key, digest_size=16, key=salt).digest() if key else b"" for key in keys]


def allocation(counts: Sequence[int]) -> Iterator[int]:
    """Yield the class of one row after the other, so that any number of rows is shared in proportion to `counts`.

    Each class has a row first, in class order. The shares of any number of rows are less than one row from
    proportional, if each class is due one, and no class has fewer rows of a larger number: the method of Balinski and
    Young (The Quota Method of Apportionment, 1975). The method of largest remainders does not have this property.

    Args:
        counts: Rows found of each class, at least one.
    """
    shares, total = [1] * len(counts), sum(counts)
    yield from range(len(counts))
    for rows in itertools.count(len(counts) + 1):
        due = [label for label, count in enumerate(counts) if shares[label] * total < rows * count]
        chosen = max(due, key=lambda label: counts[label] / (shares[label] + 1))
        shares[chosen] += 1
        yield chosen


def allocate(size: int, counts: Sequence[int]) -> list[int]:
    """Return how many of `size` rows each class has by `allocation`.

    Raises:
        DataError: If `size` is smaller than the number of classes.
    """
    if size < len(counts):
        raise DataError(
            f"A split of {size} rows cannot hold a row of each of {len(counts)} classes. Ask for more rows."
        )
    shares = Counter(itertools.islice(allocation(counts), size))
    return [shares[label] for label in range(len(counts))]


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
    taken from the front of the hashed order and train from its end: a smaller train is the front of a larger one, and
    no other split changes. A row that overlaps with a row of dev is passed over in head_init and train.

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
    _check_counts(counts, [1] * len(counts), sizes.head_init + sizes.train + sizes.dev, label_names)
    left, overlap = [deque(rows) for rows in by_class], TextOverlap([])
    wanted, drawn_rows = [0] * len(counts), [0] * len(counts)
    drawn: dict[str, list[int]] = {"dev": [], "head_init": [], "train": []}
    passed_over: list[int] = []
    for split, take in (("dev", deque.popleft), ("head_init", deque.popleft), ("train", deque.pop)):
        for label in itertools.islice(allocation(counts), getattr(sizes, split)):
            wanted[label] += 1
            while left[label]:
                row = take(left[label])
                if texts[row] not in overlap:
                    drawn[split].append(row)
                    drawn_rows[label] += 1
                    break
                passed_over.append(row)
        if split == "dev":
            overlap = TextOverlap(texts[row] for row in drawn["dev"])
    _check_counts(drawn_rows, wanted, 0, label_names)
    return drawn, passed_over


def _draw_eval(
    texts: Sequence[str], labels: Sequence[int], keys: Sequence[bytes], size: int | None, label_names: Sequence[str]
) -> list[int]:
    """Return all rows, or a stratified `size` of them if there are more, in their own order."""
    if size is None or size >= len(labels):
        return list(range(len(labels)))
    by_class: list[list[int]] = [[] for _ in label_names]
    for row in sorted(range(len(labels)), key=lambda row: (keys[row], texts[row], labels[row])):
        by_class[labels[row]].append(row)
    counts = [len(rows) for rows in by_class]
    _check_counts(counts, [1] * len(counts), 0, label_names)
    shares = allocate(size, counts)
    return sorted(row for rows, share in zip(by_class, shares, strict=True) for row in rows[:share])


def _check_counts(found: Sequence[int], asked: Sequence[int], in_all: int, label_names: Sequence[str]) -> None:
    """Refuse a draw of more rows of a class, or of all classes, than there are."""
    of_classes = [f"of class {name!r} " for name in label_names]
    for name, rows, wanted in zip([*of_classes, ""], [*found, sum(found)], [*asked, in_all], strict=True):
        if rows < wanted:
            raise DataError(
                f"{wanted} rows {name}are asked for in all, but only {rows} usable ones are found "
                "(labeled, not repeated, not in eval, not overlapping with dev). Lower head_init_size, train_size, "
                "dev_size or eval_size."
            )
