"""Exactly N samples from a stream of batches, whatever a batch consists of."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from influence_masking.errors import MaskingError


@dataclasses.dataclass(frozen=True)
class CalibrationBatch:
    """One batch of the calibration data.

    Attributes:
        data: The data loader's batch, cut to the samples that are used.
        index: Its position in the stream, from 0.
        size: Number of samples.
    """

    data: Any
    index: int
    size: int


def take_samples(stream: Iterable[Any], num_samples: int | None) -> Iterator[CalibrationBatch]:
    """Yield the first batches of a stream, the last one cut so that together they have exactly `num_samples` samples.

    Empty batches are skipped.

    Args:
        stream: Batches: tensors whose first dimension counts samples, or mappings, sequences and dataclasses of them.
        num_samples: Number of samples to take; None takes all.

    Raises:
        MaskingError: If the stream has fewer samples, or none.
    """
    count = 0
    for index, data in enumerate(stream):
        size = count_samples(data)
        if size == 0:
            continue
        wanted = size if num_samples is None else min(size, num_samples - count)
        count += wanted
        yield CalibrationBatch(data if wanted == size else cut(data, 0, wanted, size), index, wanted)
        if count == num_samples:
            return
    if num_samples is not None or count == 0:
        raise MaskingError(
            f"Too few calibration samples: found {count}, num_samples={num_samples}. Lower `num_samples`, set it to "
            "None to take every sample, or override `calibration_batches`."
        )


def count_samples(data: Any) -> int:
    """Return the length of the first tensor of a batch that has a dimension.

    Raises:
        MaskingError: If there is no such tensor.
    """
    for tensor in _tensors(data):
        if tensor.ndim:
            return tensor.shape[0]
    raise MaskingError(
        f"Cannot count the samples of a batch of type {type(data).__name__}: it contains no tensor. Override "
        "`calibration_batches` to yield batches of tensors."
    )


def split(batch: CalibrationBatch, size: int) -> list[CalibrationBatch]:
    """Cut a batch into pieces of at most `size` samples; leave a smaller one as it is."""
    if batch.size <= size:
        return [batch]
    starts = range(0, batch.size, size)
    return [
        CalibrationBatch(
            cut(batch.data, i, min(i + size, batch.size), batch.size), batch.index, min(size, batch.size - i)
        )
        for i in starts
    ]


def cut(data: Any, start: int, stop: int, size: int) -> Any:
    """Return samples `start` to `stop` of a batch of `size` samples, with the same types.

    Tensors are cut along their first dimension if it has that size, and sequences if they have that length.
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
    # a pair (inputs, labels) of a batch of two samples is not a sequence of two samples
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
