"""The baseline start: a head of a few kilobytes with a reference to the backbone it was trained on."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


class StartError(ValueError):
    """A baseline start is missing or does not fit the model or the data."""


@dataclass(frozen=True)
class StartReference:
    """What a head was trained on, which must match before another arm may begin there; and, from `train_on` on, how."""

    backbone: str
    backbone_fingerprint: str
    num_labels: int
    dataset: str
    data_fingerprint: str
    seed: int
    train_on: str
    epochs: int
    learning_rate: float


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
            StartError: If the file is missing or not a start.
        """
        path = Path(path)
        if not path.is_file():
            raise StartError(f"No baseline start at {path}: the other arms begin from the head that `baseline` trains.")
        try:
            with safe_open(path, framework="pt") as file:
                reference = StartReference(**json.loads((file.metadata() or {})["start"]))
                names = file.keys()
                return cls(path, {name: file.get_tensor(name) for name in names}, reference)
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise StartError(f"{path} is not a baseline start ({error}).") from error

    def save(self) -> None:
        """Writes the file whole or not at all.

        Raises:
            OSError: If it cannot be written; it names the file.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(save(self.head, metadata={"start": json.dumps(asdict(self.reference))}))
            temporary.replace(self.path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        finally:
            temporary.unlink(missing_ok=True)

    def check_backbone(self, fingerprint: str, name: str, num_labels: int) -> None:
        """Raises StartError unless the head was trained on this backbone, for this number of classes."""
        made = self.reference
        if made.backbone_fingerprint != fingerprint:
            raise StartError(
                f"The start {self.path} was made on the backbone {made.backbone!r} "
                f"(fingerprint {made.backbone_fingerprint[:12]}), but {name!r} ({fingerprint[:12]}) is loaded."
            )
        if made.num_labels != num_labels:
            raise StartError(f"The start {self.path} tells {made.num_labels} classes apart, the data has {num_labels}.")

    def check_data(self, fingerprint: str, seed: int) -> None:
        """Raises StartError unless the head was trained on the same splits with the same seed."""
        made = self.reference
        if (made.data_fingerprint, made.seed) != (fingerprint, seed):
            raise StartError(
                f"The start {self.path} was made on {made.dataset} with seed {made.seed} (splits "
                f"{made.data_fingerprint[:12]}), but this run has seed {seed} (splits {fingerprint[:12]}): other rows, "
                "sizes or seed."
            )
