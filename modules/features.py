"""Features: the vectors that a frozen backbone computes for a split, one per row."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm.auto import tqdm

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Features:
    """One vector per row of a split.

    Attributes:
        rows: The id of each row, [rows].
        vectors: [rows, hidden], on the device where they are used.
        places: Index into `vectors` of each id, [largest id + 2]. A table, because XLA has no `searchsorted`.
    """

    rows: Tensor
    vectors: Tensor
    places: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Make the table. Its last entry is for -1, the id of padding rows, whose loss is not counted."""
        places = self.rows.new_zeros(int(self.rows.max()) + 2)
        places[self.rows] = torch.arange(len(self.rows))
        object.__setattr__(self, "places", places.to(self.vectors.device))

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
    ids, encoded = torch.cat(rows), torch.cat(vectors)
    return Features(ids[ids >= 0], encoded[(ids >= 0).to(encoded.device)].to(device))


def _off_xla(vectors: Tensor) -> Tensor:
    """Read vectors back from XLA, which otherwise runs all batches as one program; leave a GPU to work ahead."""
    return vectors.cpu() if vectors.device.type == "xla" else vectors
