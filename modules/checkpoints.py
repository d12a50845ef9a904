"""Checkpoints, read as untrusted files: nothing in them is executed, and damage is reported."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from torch import Tensor

from modules.errors import CheckpointError
from modules.start import KIND_FOLDER, KIND_MASK, KIND_START, kind_of_file

FIELDS = {
    "state_dict": dict,
    "condition": dict,
    "backbone": dict,
    "pytorch-lightning_version": str,
    "epoch": int,
    "global_step": int,
    "loops": dict,
}
"""Fields of every checkpoint, and their types."""

TRAINING_FIELDS = {"callbacks": dict, "optimizer_states": list, "lr_schedulers": list}
"""Further fields of a checkpoint that a fit can resume from."""


class CheckedCheckpointIO(_WrappingCheckpointIO):
    """Make a Trainer read checkpoints by `read_checkpoint`; writing is unchanged."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a file; `weights_only` is always on."""
        return read_checkpoint(path, map_location)


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint without executing anything in it.

    Raises:
        CheckpointError: If the file is damaged, holds more than tensors and plain values, is not a checkpoint of this
            project, or has weights that are not finite.
    """
    try:
        _check_archive(Path(path))
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # damaged bytes can raise any exception
        damaged = f"{path} cannot be read as a checkpoint: {_reason(error)}. Nothing in it was executed. Give another"
        raise CheckpointError(wrong_kind(Path(path)) or f"{damaged}, or fit again with --overwrite.") from error
    _check_fields(path, checkpoint)
    _check_weights(path, checkpoint["state_dict"])
    return checkpoint


def wrong_kind(path: Path) -> str | None:
    """Return a message that says what a path is and what to give, or None if it may be a checkpoint."""
    kind = kind_of_file(path)
    if kind == KIND_FOLDER:
        return f"{path} is a folder. Give a checkpoint in it, such as {path / 'checkpoints' / 'best.ckpt'}."
    return (
        f"{path} is {kind}. Give a checkpoint: <run>/checkpoints/best.ckpt."
        if kind in (KIND_START, KIND_MASK)
        else None
    )


def _check_archive(path: Path) -> None:
    """Raise ValueError unless the file is an archive as `torch.save` writes it; `torch.load` skips the checksums."""
    if not path.is_file():
        raise ValueError("it is not a file")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
        if packed or len(set(names)) < len(names):
            raise ValueError("it is not an archive that torch wrote")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")


def _reason(error: Exception) -> str:
    """Return the cause in a few words; torch's own message advises to load the file unsafely."""
    unsupported = re.search(r"(?:GLOBAL|class|function)\s+([\w.]+)", str(error))
    if "Weights only load failed" in str(error):
        return f"it holds more than weights and plain values ({unsupported[1] if unsupported else 'code'})"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _check_fields(path: str | Path, checkpoint: Any) -> None:
    found = checkpoint if isinstance(checkpoint, dict) else {}
    kinds = FIELDS | {name: kind for name, kind in TRAINING_FIELDS.items() if name in found}
    wrong = [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]
    weights = found.get("state_dict", {})
    if not wrong and not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        wrong = ["state_dict"]
    wrong += [name for name in ("condition", "backbone") if not wrong and not _is_plain(found[name])]
    if wrong:
        raise CheckpointError(
            f"{path} is not a checkpoint of `influence fit`: its {wrong[0]!r} is missing or of a wrong type. Give a "
            "checkpoint that it saved, or fit again."
        )


def _is_plain(value: Any) -> bool:
    """Return whether a value consists of texts and numbers, so that it can be compared and printed."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _check_weights(path: str | Path, weights: dict[str, Tensor]) -> None:
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(
                f"{path} has values in {name} that are NaN or infinite: the fit had diverged, or the file was changed. "
                "Fit again, with a lower learning rate if it had diverged."
            )


def check_fit(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless weights have the names, shapes and number types of the expected ones."""
    for name in [*expected, *weights]:
        needed, found = (_described(tensors.get(name)) for tensors in (expected, weights))
        if needed != found:
            raise CheckpointError(
                f"The checkpoint does not fit the model: it has {found} as {name}, but the model needs {needed}. Give "
                "a checkpoint of the same arm, options and backbone; its settings are in the config.yaml of its run."
            )


def _described(tensor: Tensor | None) -> str:
    if tensor is None:
        return "nothing"
    kind = "numbers" if tensor.is_floating_point() else str(tensor.dtype)
    return f"{kind} of shape {tuple(tensor.shape)}"
