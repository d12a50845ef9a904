"""What a frozen backbone makes of a split: computed once, shared by arms with the same backbone and rows."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Features:
    """One vector a row of a split.

    Attributes:
        places: Where each row id is in `vectors`: [largest id + 1]. A table, because XLA has no `searchsorted`.
        vectors: [N, hidden].
    """

    places: Tensor
    vectors: Tensor

    def of(self, rows: Tensor) -> Tensor:
        """The vectors [batch, hidden] of some of its rows [batch]."""
        return self.vectors[self.places[rows]]


def extract(encode: Callable[[Batch], Tensor], batches: Iterable[Batch], device: torch.device, bar: bool) -> Features:
    """Encodes every row of a split.

    Args:
        encode: From a batch to vectors [batch, hidden].
        batches: All rows, each once.
        device: Where the features are kept.
        bar: Whether to show a progress bar.
    """
    rows, vectors = [], []
    with torch.inference_mode(False), torch.no_grad():  # a head trains on them: inference tensors would refuse
        for batch in tqdm(batches, desc="Features", unit="batch", leave=False, disable=not bar):
            vectors.append(_kept(encode(batch)))
            rows.append(batch["row"].cpu())
    ids = torch.cat(rows)
    places = ids.new_zeros(int(ids.max()) + 2)  # one for -1, which stands where a batch has no row
    places[ids] = torch.arange(len(ids))
    return Features(places.to(device), torch.cat(vectors).to(device))


def _kept(vectors: Tensor) -> Tensor:
    """Leaves a GPU to the next batch at once; has XLA run this one, which would else wait for all of them."""
    return vectors.cpu() if vectors.device.type == "xla" else vectors


class FeatureCache:
    """Keeps the features of the backbones that were used last, in memory.

    Args:
        backbones: How many; two serve the unmasked one and the masked one that an experiment is at.
    """

    def __init__(self, backbones: int = 2) -> None:
        self.backbones = backbones
        self._kept: OrderedDict[str, dict[str, Features]] = OrderedDict()

    def get(self, backbone: str, split: str, make: Callable[[], Features]) -> Features:
        """The features of a split, made if they are not kept.

        Args:
            backbone: Tells the weights apart that make them, and how they compute.
            split: Tells the rows and their batches apart.
            make: Computes them.
        """
        splits = self._kept.setdefault(backbone, {})
        self._kept.move_to_end(backbone)
        if split not in splits:
            splits[split] = make()
        while len(self._kept) > self.backbones:
            self._kept.popitem(last=False)
        return splits[split]

    def clear(self) -> None:
        """Forgets everything."""
        self._kept.clear()
