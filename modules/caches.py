"""Results that conditions of one process share: features of frozen backbones, and the latest gradient.

A run owns its caches; whoever runs several conditions in one process hands the same `Caches` to all of them.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

from influence_masking import MeanGradient
from modules.features import Features


class FeatureCache:
    """Keep the features of the backbones that were used last, in memory.

    Args:
        backbones: Number of backbones; two are the unmasked one and the masked one of the present condition.
    """

    def __init__(self, backbones: int = 2) -> None:
        self.backbones = backbones
        self._kept: OrderedDict[str, dict[str, Features]] = OrderedDict()

    def get(self, backbone: str, split: str, make: Callable[[], Features]) -> Features:
        """Return the features of a split, computed if they are not kept.

        Args:
            backbone: Identifies the weights that make them, and their arithmetic.
            split: Identifies the rows and their batches.
            make: Computes them.
        """
        splits = self._kept.setdefault(backbone, {})
        self._kept.move_to_end(backbone)
        if split not in splits:
            splits[split] = make()
        while len(self._kept) > self.backbones:
            self._kept.popitem(last=False)
        return splits[split]


class GradientCache:
    """Keep the latest gradient, which is as large as the candidates in float32."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._latest: tuple[MeanGradient, float] | None = None

    def __contains__(self, key: str) -> bool:
        return self._latest is not None and self._key == key

    def get(self, key: str, make: Callable[[], MeanGradient]) -> tuple[MeanGradient, float]:
        """Return the gradient and the seconds that it took, computed if it is not the one that is kept.

        Args:
            key: Identifies all that the gradient depends on.
            make: Computes it.
        """
        if self._latest is None or self._key != key:
            self._latest = None  # before the new one: there may not be memory for both
            start = perf_counter()
            gradient = make()
            self._key, self._latest = key, (gradient, perf_counter() - start)
        return self._latest


@dataclass(frozen=True)
class Caches:
    """The caches of one process."""

    features: FeatureCache = field(default_factory=FeatureCache)
    gradients: GradientCache = field(default_factory=GradientCache)
