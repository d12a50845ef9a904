"""Features: the vectors that a frozen backbone computes for a split, one per row."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Features:
    """One vector per row of a split.

    Attributes:
        places: Index into `vectors` of each row id, [largest id + 2]. A table, because XLA has no `searchsorted`.
        vectors: [rows, hidden].
    """

    places: Tensor
    vectors: Tensor

    def of(self, rows: Tensor) -> Tensor:
        """Return the vectors [batch, hidden] of some rows [batch]."""
        return self.vectors[self.places[rows]]


def extract(encode: Callable[[Batch], Tensor], batches: Iterable[Batch], device: torch.device, bar: bool) -> Features:
    """Encode every row of a split.

    Args:
        encode: From a batch to vectors [batch, hidden].
        batches: All rows, each once.
        device: Where the features are kept.
        bar: Whether to show a progress bar.
    """
    rows, vectors = [], []
    with torch.inference_mode(False), torch.no_grad():  # a head cannot train on inference tensors
        for batch in tqdm(batches, desc="Features", unit="batch", leave=False, disable=not bar):
            vectors.append(_off_xla(encode(batch)))
            rows.append(batch["row"].cpu())
    ids, real = torch.cat(rows), torch.cat(rows) >= 0
    places = ids.new_zeros(int(ids.max()) + 2)  # the last is for -1, the id of padding rows, whose loss is not counted
    places[ids[real]] = torch.arange(int(real.sum()))
    encoded = torch.cat(vectors)
    return Features(places.to(device), encoded[real.to(encoded.device)].to(device))


def _off_xla(vectors: Tensor) -> Tensor:
    """Read vectors back from XLA, which otherwise runs all batches as one program; leave a GPU to work ahead."""
    return vectors.cpu() if vectors.device.type == "xla" else vectors
