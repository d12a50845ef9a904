"""Results that conditions of one process share: features of frozen backbones, the latest gradient, and first looks.

Each classifier has caches of its own. To share results, assign the same `Caches` to several classifiers.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from influence_masking import MeanGradient
from modules.features import Features

TimedGradient = tuple[MeanGradient, float]
"""A gradient, and the seconds that it took."""


class FeatureCache:
    """Keep the features of the most recently used backbones in memory.

    Args:
        backbones: How many backbones. Two suffice for the unmasked one and the current condition's masked one.
    """

    def __init__(self, backbones: int = 2) -> None:
        self.backbones = backbones
        self._kept: OrderedDict[str, dict[str, Features]] = OrderedDict()

    def get(self, backbone: str, split: str, make: Callable[[], Features]) -> Features:
        """Return the features of a split, computed if they are not kept.

        Args:
            backbone: Key of the backbone's weights and arithmetic.
            split: Key of the rows and their batches.
            make: Computes the features.
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
        self._latest: TimedGradient | None = None

    def get(self, key: str, make: Callable[[], TimedGradient]) -> TimedGradient:
        """Return the gradient and the seconds that it took, computed if another one is kept.

        Args:
            key: Key of everything that the gradient depends on.
            make: Computes the gradient, or reads it.
        """
        if self._latest is None or self._key != key:
            self._latest = None  # freed first: memory may not hold two
            self._key, self._latest = key, make()
        return self._latest


@dataclass(frozen=True)
class Caches:
    """Everything that conditions of one process share; `looks` are the keys of the first looks that found no fault."""

    features: FeatureCache = field(default_factory=FeatureCache)
    gradients: GradientCache = field(default_factory=GradientCache)
    looks: set[tuple[Any, ...]] = field(default_factory=set)
