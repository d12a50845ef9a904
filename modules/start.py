"""The head checkpoint `start.safetensors`: a trained head, with a reference to the backbone it was trained on."""

import hashlib
import json
import uuid
import zipfile
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from modules.errors import StartError

KIND_FOLDER, KIND_START = "a folder", "a head checkpoint"
KIND_MASK, KIND_UNKNOWN = "a mask", "a damaged or unknown file"


def kind_of_file(path: Path) -> str:
    """Return what a path is, in words for a message."""
    if path.is_dir():
        return KIND_FOLDER
    if zipfile.is_zipfile(path):
        return "a checkpoint or another archive"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        return KIND_UNKNOWN
    return KIND_START if "start" in metadata else KIND_MASK if "shapes" in metadata else KIND_UNKNOWN


@dataclass(frozen=True)
class StartReference:
    """What a head was trained on, which must match the arm that starts from it. `train_on` and later fields say how."""

    backbone: str
    backbone_fingerprint: str
    num_labels: int
    dataset: str
    data_fingerprint: str
    tokenizer_digest: str
    seed: int
    train_on: str
    epochs: int
    learning_rate: float


@dataclass(frozen=True)
class Start:
    """A trained head and its reference, saved in one safetensors file with a SHA-256 over both."""

    path: Path
    head: dict[str, Tensor]
    reference: StartReference

    @classmethod
    def load(cls, path: str | Path) -> "Start":
        """Read a start.

        Raises:
            StartError: If the file is missing, damaged or not a start.
        """
        path = Path(path)
        if not path.exists():
            raise StartError(
                f"model.start: no head checkpoint at {path}. Other arms begin from the head that `baseline` trains."
            )
        kind = kind_of_file(path)
        if kind not in (KIND_START, KIND_UNKNOWN):
            raise StartError(
                f"{path} is not a head checkpoint but {kind}. Give the start.safetensors of a baseline's run folder."
            )
        try:
            with safe_open(path, framework="pt") as file:
                metadata, names = file.metadata() or {}, file.keys()
                head = {name: file.get_tensor(name).clone() for name in names}  # the file may change after the check
            start = cls(path, head, _reference(metadata["start"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise StartError(f"{path} is not a head checkpoint ({error}).") from error
        if metadata.get("digest") != start.digest():
            raise StartError(f"{path} is damaged: its content does not give its digest.")
        return start

    def digest(self) -> str:
        """Return the SHA-256 over the head and its reference."""
        return hashlib.sha256(save(self.head, metadata={"start": self._described()})).hexdigest()

    def save(self) -> None:
        """Write the file completely or not at all.

        Raises:
            OSError: If it cannot be written; it names the file.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(save(self.head, metadata={"start": self._described(), "digest": self.digest()}))
            temporary.replace(self.path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _described(self) -> str:
        return json.dumps(asdict(self.reference), sort_keys=True)

    def check_backbone(self, fingerprint: str, name: str, num_labels: int) -> None:
        """Raise StartError unless the head was trained on this backbone, for this number of classes."""
        made = self.reference
        if made.backbone_fingerprint != fingerprint:
            raise StartError(
                f"The start {self.path} was made on the backbone {made.backbone!r} "
                f"(fingerprint {made.backbone_fingerprint[:12]}), but {name!r} ({fingerprint[:12]}) is loaded."
            )
        if made.num_labels != num_labels:
            raise StartError(
                f"The start {self.path} was made for {made.num_labels} classes, but the data has {num_labels}."
            )

    def check_head(self, expected: dict[str, Tensor]) -> None:
        """Raise StartError unless the head has the names, shapes and number types of `expected`, and is finite."""
        needed, found = ({n: (tuple(t.shape), t.dtype) for n, t in head.items()} for head in (expected, self.head))
        if needed != found or not all(tensor.isfinite().all() for tensor in self.head.values()):
            raise StartError(
                f"The start {self.path} has a head of {found}, but the model needs finite numbers of {needed}: it was "
                "made for another model, or the fit that made it had diverged."
            )

    def check_data(self, fingerprint: str, tokenizer_digest: str, seed: int) -> None:
        """Raise StartError unless the head was trained on the same splits and tokens with the same seed."""
        made = self.reference
        if made.tokenizer_digest != tokenizer_digest:
            raise StartError(
                f"The start {self.path} was made with another tokenizer ({made.tokenizer_digest[:12]}, this run has "
                f"{tokenizer_digest[:12]})."
            )
        if (made.data_fingerprint, made.seed) != (fingerprint, seed):
            raise StartError(
                f"The start {self.path} was made on {made.dataset} with seed {made.seed} (splits "
                f"{made.data_fingerprint[:12]}), but this run has seed {seed} (splits {fingerprint[:12]}): other rows, "
                "sizes or seed."
            )


def _reference(text: str) -> StartReference:
    """Parse the reference in a file's metadata; raise ValueError if a field is missing, unknown or of a wrong type."""
    values = json.loads(text)
    for field in fields(StartReference):
        if type(values[field.name]) is not field.type:
            raise ValueError(f"{field.name} is {values[field.name]!r}")
    reference = StartReference(**values)
    if not isfinite(reference.learning_rate):
        raise ValueError(f"learning_rate is {reference.learning_rate}")
    return reference
