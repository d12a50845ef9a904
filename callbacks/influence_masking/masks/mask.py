"""A mask: the selected weights of a model, one bit per weight."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from influence_masking.errors import MaskingError
from influence_masking.masks import bits, files
from influence_masking.masks.names import canonical_name, layer_of, projection_of
from influence_masking.runtime.sharding import local_part

FORMAT = "influence-masking/2"


class Share(NamedTuple):
    """Number of candidates and of masked weights in one projection of one layer."""

    layer: str
    projection: str
    masked: int
    candidates: int

    @property
    def fraction(self) -> float:
        """Share of the candidates that is masked; 0 without candidates."""
        return self.masked / self.candidates if self.candidates else 0.0


class Overlap(NamedTuple):
    """Overlap of two masks.

    Attributes:
        intersection: Number of weights in both.
        union: Number of weights in either.
        jaccard: Intersection over union; 1 for two empty masks.
        chance: Jaccard index of two random masks of these sizes, to first order.
    """

    intersection: int
    union: int
    jaccard: float
    chance: float


@dataclass(frozen=True, eq=False)
class Mask:
    """The selected weights, and the candidate parameters that they were selected from.

    Attributes:
        shapes: Shape of each candidate parameter by name, in the order of the model.
        packed: One bit per weight by name: uint8 CPU tensors of ceil(elements / 8) bytes, the first weight in the
            highest bit, weights in row-major order.
        provenance: How the mask was made, as JSON values.
    """

    shapes: dict[str, tuple[int, ...]]
    packed: dict[str, Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, shape in self.shapes.items():
            _check_bits(name, math.prod(shape), self.packed.get(name))
        if extra := [name for name in self.packed if name not in self.shapes]:
            raise _damaged(f"it has bits for {extra[0]}, which has no shape")

    @classmethod
    def from_flags(cls, flags: Mapping[str, Tensor], **provenance: Any) -> "Mask":
        """Make a mask from bool tensors with the parameters' shapes, True for a selected weight."""
        packed = {name: bits.pack(flag.reshape(-1)).cpu() for name, flag in flags.items()}
        return cls({name: tuple(flag.shape) for name, flag in flags.items()}, packed, dict(provenance))

    def flags(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """Return a bool tensor with the parameter's shape, True for a selected weight."""
        shape = self.shapes[name]
        return bits.unpack(self.packed[name].to(device), math.prod(shape)).view(shape)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of selected weights by parameter."""
        return {name: bits.count_ones(packed) for name, packed in self.packed.items()}

    @property
    def num_masked(self) -> int:
        """Number of selected weights."""
        return sum(self.counts.values())

    @property
    def num_candidates(self) -> int:
        """Number of candidate weights."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def fraction(self) -> float:
        """Share of the candidates that is selected."""
        return self.num_masked / max(self.num_candidates, 1)

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, over names, shapes and bits, parameters in the order of their names."""
        sha = hashlib.sha256()
        for name in sorted(self.shapes):
            sha.update(json.dumps([name, list(self.shapes[name])]).encode())
            sha.update(self.packed[name].contiguous().numpy().tobytes())
        return sha.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def summary(self) -> list[Share]:
        """Return the masked share of each projection of each layer, in the order of the model."""
        sums: dict[tuple[str, str], list[int]] = {}
        for name, shape in self.shapes.items():
            share = sums.setdefault((layer_of(name), projection_of(name)), [0, 0])
            share[0] += self.counts[name]
            share[1] += math.prod(shape)
        return [Share(layer, projection, *share) for (layer, projection), share in sums.items()]

    def union(self, other: "Mask") -> "Mask":
        """Return the mask of the weights in either mask."""
        return self._combine(other, torch.bitwise_or)

    def intersection(self, other: "Mask") -> "Mask":
        """Return the mask of the weights in both masks."""
        return self._combine(other, torch.bitwise_and)

    def difference(self, other: "Mask") -> "Mask":
        """Return the mask of the weights in this mask and not in the other."""
        return self._combine(other, lambda a, b: a & ~b)

    __or__, __and__, __sub__ = union, intersection, difference

    def overlap(self, other: "Mask") -> Overlap:
        """Return the overlap with another mask, and what it would be by chance."""
        both, total = (self & other).num_masked, max(self.num_candidates, 1)
        either = self.num_masked + other.num_masked - both
        by_chance = self.num_masked * other.num_masked / total
        possible = self.num_masked + other.num_masked - by_chance
        return Overlap(both, either, both / either if either else 1.0, by_chance / possible if possible else 1.0)

    def check(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """Return the module's parameters that are candidates of the mask, by name.

        Raises:
            MaskingError: If the module lacks one or has it with another shape; names the first that differs.
        """
        parameters = {canonical_name(name): p for name, p in module.named_parameters(remove_duplicate=False)}
        for name, shape in self.shapes.items():
            found = tuple(parameters[name].shape) if name in parameters else None
            if found != shape:
                raise MaskingError(
                    f"The mask does not fit the module: it has {name} of shape {shape}, {type(module).__name__} has "
                    f"{'no such parameter' if found is None else f'shape {found}'}. Use a mask made for this model."
                )
        return {name: parameters[name] for name in self.shapes}

    @torch.no_grad()
    def apply(self, module: nn.Module) -> None:
        """Set the selected weights of a module to zero, in place; training can change them afterwards.

        Raises:
            MaskingError: If the mask was made for another model.
        """
        for name, parameter in self.check(module).items():
            local = local_part(name, parameter)
            local.tensor.masked_fill_(local.cut(self.flags(name, parameter.device)), 0)

    def save(self, path: str | Path, **provenance: Any) -> None:
        """Write the mask to a safetensors file, with the keywords added to its provenance."""
        known = json.dumps(self.provenance | provenance, default=str)
        metadata = {"format": FORMAT, "digest": self.digest, "shapes": json.dumps(self.shapes), "provenance": known}
        files.write(path, self.packed, metadata | {"checksum": _checksum(metadata)})

    @classmethod
    def load(cls, path: str | Path) -> "Mask":
        """Read a mask from a file that `save` wrote.

        Raises:
            MaskingError: If the file is missing, damaged, or not a mask.
        """
        packed, metadata = files.read(path)
        if metadata.get("format") != FORMAT:
            raise MaskingError(
                f"{path} is not a mask file: its format is {metadata.get('format')!r}, not {FORMAT!r}. Pass a file "
                "that `Mask.save` wrote."
            )
        try:
            if metadata.pop("checksum", None) != _checksum(metadata):
                raise _damaged("its metadata do not match their checksum")
            parts = {name: json.loads(metadata[name]) for name in ("shapes", "provenance")}
            return cls.from_state_dict(parts | {"packed": packed, "digest": metadata["digest"]})
        except (KeyError, ValueError, RecursionError) as error:
            cause = error if isinstance(error, MaskingError) else _damaged(f"its metadata cannot be parsed ({error!r})")
            raise MaskingError(f"Cannot read mask file {path}. {cause}") from error

    def state_dict(self) -> dict[str, Any]:
        """Return the mask as tensors and plain values, for a checkpoint."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        parts = {"shapes": shapes, "packed": dict(self.packed), "provenance": dict(self.provenance)}
        return parts | {"digest": self.digest}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Mask":
        """Make a mask from the result of `state_dict`.

        Raises:
            MaskingError: If it is damaged.
        """
        parts = ("shapes", "packed", "provenance")
        if not isinstance(state, Mapping) or not all(isinstance(state.get(part), dict) for part in parts):
            raise _damaged(f"it lacks one of {', '.join(parts)}")
        for name, shape in state["shapes"].items():
            if not isinstance(name, str) or not _is_shape(shape):
                raise _damaged(f"it gives {name!r} the shape {shape!r}")
        shapes = {name: tuple(shape) for name, shape in state["shapes"].items()}
        packed = {name: bits.cpu() if isinstance(bits, Tensor) else bits for name, bits in state["packed"].items()}
        mask = cls(shapes, packed, dict(state["provenance"]))
        if mask.digest != state.get("digest"):
            raise _damaged("its bits and shapes do not match its digest")
        return mask

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that the candidates have these names and shapes.

        Raises:
            MaskingError: If one differs; names the first.
        """
        for name in [*self.shapes, *shapes]:
            if self.shapes.get(name) != shapes.get(name):
                raise MaskingError(
                    f"The masks or gradients are not over the same candidates: {name} has shape "
                    f"{self.shapes.get(name)} in one and {shapes.get(name)} in the other. Combine those of one model "
                    "and the same targets."
                )

    def _combine(self, other: "Mask", operation: Callable[[Tensor, Tensor], Tensor]) -> "Mask":
        self.check_shapes(other.shapes)
        packed = {name: operation(mine, other.packed[name]) for name, mine in self.packed.items()}
        return Mask(dict(self.shapes), packed)


def _checksum(metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of the metadata, which contain the digest of everything else in a file."""
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _damaged(found: str) -> MaskingError:
    return MaskingError(f"The mask is damaged: {found}. Make it again, or use another copy.")


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _check_bits(name: str, count: int, packed: Tensor | None) -> None:
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8 or packed.shape != (-(-count // 8),):
        found = f"{packed.dtype} of shape {tuple(packed.shape)}" if isinstance(packed, Tensor) else "none"
        raise _damaged(f"{name} needs {count} packed bits, found {found}")
    if count % 8 and int(packed[-1]) & (0xFF >> count % 8):
        raise _damaged(f"{name} has {count} weights, found bits set beyond them")
