"""Exactly N samples of a stream of batches, whatever a batch is made of."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from influence_masking.errors import MaskingError


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch of the calibration data.

    Attributes:
        data: What the data loader gave, cut to the samples that are wanted.
        index: Its place in the stream, from 0.
        size: How many samples it holds.
    """

    data: Any
    index: int
    size: int


def take_samples(stream: Iterable[Any], num_samples: int | None) -> Iterator[Batch]:
    """Yields the first batches of a stream, the last one cut so that they hold exactly ``num_samples`` samples.

    Batches without a sample are left out.

    Args:
        stream: Batches: tensors whose first dimension counts samples, or mappings, sequences and dataclasses of them.
        num_samples: How many samples to take; None takes every one.

    Raises:
        MaskingError: If the stream ends before, or is empty.
    """
    found = 0
    for index, data in enumerate(stream):
        size = count_samples(data)
        if size == 0:
            continue
        wanted = size if num_samples is None else min(size, num_samples - found)
        found += wanted
        yield Batch(data if wanted == size else cut(data, 0, wanted, size), index, wanted)
        if found == num_samples:
            return
    if num_samples is not None or found == 0:
        raise MaskingError(
            f"Asked for num_samples={num_samples}, found {found} samples in the calibration data. Lower `num_samples`, "
            "set it to None to take every sample, or override `calibration_batches`."
        )


def count_samples(data: Any) -> int:
    """Returns the length of the first tensor of a batch that has a dimension.

    Raises:
        MaskingError: If there is no such tensor.
    """
    for tensor in _tensors(data):
        if tensor.ndim:
            return tensor.shape[0]
    raise MaskingError(
        f"Asked to count the samples of a batch of type {type(data).__name__}, found no tensor in it. Override "
        "`calibration_batches` so that it yields batches of tensors."
    )


def split(batch: Batch, size: int) -> list[Batch]:
    """Cuts a batch into pieces of at most ``size`` samples; a batch that is small enough stays as it is."""
    if batch.size <= size:
        return [batch]
    starts = range(0, batch.size, size)
    return [
        Batch(cut(batch.data, i, min(i + size, batch.size), batch.size), batch.index, min(size, batch.size - i))
        for i in starts
    ]


def cut(data: Any, start: int, stop: int, size: int) -> Any:
    """Returns samples ``start`` to ``stop`` of a batch of ``size`` samples, as the same types.

    Tensors are cut along their first dimension if it has that size. So are sequences of that length, unless there is a
    tensor of that many samples inside (a pair of inputs and labels in a batch of two).
    """
    if isinstance(data, Tensor):
        return data[start:stop] if data.ndim and data.shape[0] == size else data
    rebuild: Any = type(data)
    if isinstance(data, Mapping):
        return rebuild({key: cut(value, start, stop, size) for key, value in data.items()})
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        fields = {f.name: cut(getattr(data, f.name), start, stop, size) for f in dataclasses.fields(data)}
        return dataclasses.replace(data, **fields)
    if not isinstance(data, Sequence) or isinstance(data, str | bytes):
        return data
    if len(data) == size and not any(tensor.shape[:1] == (size,) for tensor in _tensors(data)):
        return data[start:stop]
    items = [cut(item, start, stop, size) for item in data]
    return rebuild(*items) if hasattr(data, "_fields") else rebuild(items)


def _tensors(data: Any) -> Iterator[Tensor]:
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, Mapping):
        yield from (tensor for value in data.values() for tensor in _tensors(value))
    elif dataclasses.is_dataclass(data) and not isinstance(data, type):
        yield from (tensor for f in dataclasses.fields(data) for tensor in _tensors(getattr(data, f.name)))
    elif isinstance(data, Sequence) and not isinstance(data, str | bytes):
        yield from (tensor for item in data for tensor in _tensors(item))
