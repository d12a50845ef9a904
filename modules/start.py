"""The baseline start: a head of a few kilobytes with a reference to the backbone it was trained on."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class StartError(ValueError):
    """A baseline start or a checkpoint is missing or does not fit the model."""


@dataclass(frozen=True)
class StartReference:
    """What a head was trained on: all of it must match before another arm may begin there."""

    backbone: str
    backbone_fingerprint: str
    num_labels: int
    dataset: str
    data_fingerprint: str
    seed: int


@dataclass(frozen=True)
class Start:
    """A trained head and its reference, kept in one safetensors file."""

    path: Path
    head: dict[str, Tensor]
    reference: StartReference

    @classmethod
    def load(cls, path: str | Path) -> "Start":
        """Reads a start.

        Raises:
            StartError: If the file is missing or not a start; a missing one names the command that makes it.
        """
        path = Path(path)
        if not path.is_file():
            raise StartError(f"No baseline start at {path}: the other arms begin from it. {_make_it(path)}")
        try:
            with safe_open(path, framework="pt") as file:
                reference = StartReference(**json.loads((file.metadata() or {})["start"]))
                names = file.keys()
                return cls(path, {name: file.get_tensor(name) for name in names}, reference)
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise StartError(f"{path} is not a baseline start ({error}). {_make_it(path)}") from error

    def save(self) -> None:
        """Writes the file whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        save_file(self.head, temporary, metadata={"start": json.dumps(asdict(self.reference))})
        temporary.replace(self.path)

    def check_backbone(self, fingerprint: str, name: str, num_labels: int) -> None:
        """Raises StartError unless the head was trained on this backbone, for this number of classes."""
        made = self.reference
        if made.backbone_fingerprint != fingerprint:
            raise StartError(
                f"The start {self.path} was made on the backbone {made.backbone!r} "
                f"(fingerprint {made.backbone_fingerprint[:12]}), but {name!r} ({fingerprint[:12]}) is loaded. "
                f"{_make_it(self.path)}"
            )
        if made.num_labels != num_labels:
            raise StartError(
                f"The start {self.path} tells {made.num_labels} classes apart, the data has {num_labels}. "
                f"{_make_it(self.path)}"
            )

    def check_data(self, fingerprint: str, seed: int) -> None:
        """Raises StartError unless the head was trained on the same splits with the same seed."""
        made = self.reference
        if (made.data_fingerprint, made.seed) != (fingerprint, seed):
            raise StartError(
                f"The start {self.path} was made on {made.dataset} with seed {made.seed} (splits "
                f"{made.data_fingerprint[:12]}), but this run has seed {seed} (splits {fingerprint[:12]}): other rows, "
                f"sizes or seed. {_make_it(self.path)}"
            )


def _make_it(path: Path) -> str:
    """The command that makes the start, read from outputs/<experiment>/<dataset>/<arm>/seed<k>/start.safetensors."""
    make = "influence fit -c configs/base.yaml -c configs/data/{dataset}.yaml -c configs/arms/baseline.yaml"
    parts = path.resolve().parts
    if len(parts) < 6 or not parts[-2].startswith("seed"):
        return f"Make one and pass its path: {make.format(dataset='<dataset>')}"
    outputs, experiment, dataset, seed = Path(*parts[:-5]), parts[-5], parts[-4], parts[-2].removeprefix("seed")
    where = "" if outputs == Path("outputs").resolve() else f" --outputs {outputs}"
    return f"Make it: {make.format(dataset=dataset)} --experiment {experiment} --seed_everything {seed}{where}"
