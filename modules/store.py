"""Tensors that later processes need again, on disk: features of frozen backbones, and gradients."""

import json
import platform
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import xxhash
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Content = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and what is known about them, as JSON values."""

VERSION = 2
"""Raise it when our code computes features or gradients in another way, so that earlier results are not taken."""

LIMIT = 4 << 30
"""Bytes that a folder may hold: two gradients of Qwen2-0.5B, or the features of four hundred conditions."""

ABANDONED_SECONDS = 3600.0
"""After so long without a change, an unfinished file has no writer any more."""


class TensorStore:
    """Keep results in a folder, the most recently used ones; several processes may share it.

    A file is written under another name and renamed, so that no reader sees half of it. What a file was made from is
    part of it and is compared on reading.

    Args:
        folder: Where the files are; made when the first one is written.
        limit: Bytes that all files may have together. Larger results are not kept.
    """

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder, self.limit = folder, limit

    def get(self, key: str, make: Callable[[], Content]) -> Content:
        """Return a result, read if it is there, otherwise made and written.

        Args:
            key: Everything that the result depends on.
            make: Makes it.
        """
        key = f"{key}/{software()}"
        path = self.folder / f"{xxhash.xxh3_128_hexdigest(key.encode())}.safetensors"
        if (content := _read(path, key)) is None:
            content = make()
            self._write(path, key, content)
        return content

    def _write(self, path: Path, key: str, content: Content) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in content[0].items()}
        if sum(tensor.nbytes for tensor in tensors.values()) > self.limit:
            return
        unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        metadata = {"key": key, "known": json.dumps(content[1]), "digest": _digest(tensors)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                save_file(tensors, unfinished, metadata)
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)
            self._remove_oldest()
        except (OSError, SafetensorError) as error:  # a full disk must not end a fit that has what it needs
            rank_zero_warn(f"{path.parent} cannot keep results for later runs, which will compute them again: {error}")

    def _remove_oldest(self) -> None:
        """Remove the files that were not used for longest, until the rest is within the limit."""
        found = []
        for path in (*self.folder.glob("*.safetensors"), *self.folder.glob(".*.safetensors.*")):
            try:
                found.append((path.stat().st_mtime, path.stat().st_size, path))
            except FileNotFoundError:  # another process has removed or renamed it
                continue
        kept = 0
        for used, size, path in sorted(found, reverse=True):
            is_unfinished = path.suffix != ".safetensors"
            kept += 0 if is_unfinished else size
            if kept > self.limit or (is_unfinished and time.time() - used > ABANDONED_SECONDS):
                path.unlink(missing_ok=True)


def _read(path: Path, key: str) -> Content | None:
    """Return the content of a file that was made for the key and is intact, and note its use."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        path.touch()
    except (OSError, SafetensorError, RuntimeError) as error:  # torch raises the last for a file that it cannot open
        if not path.exists():
            return None  # another process has just removed it
        rank_zero_warn(f"{path} is damaged ({error}), so what it held is computed again.")
        return None
    if metadata.get("key") != key or metadata.get("digest") != _digest(tensors):
        rank_zero_warn(f"{path} does not hold what its name says, so that is computed again.")
        return None
    return tensors, json.loads(metadata["known"])


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_digest(module: nn.Module) -> str:
    """Return a digest of every parameter and buffer of a module, at about the speed at which memory is read."""
    return _digest(module.state_dict())


def software() -> str:
    """Return what a result depends on apart from its inputs: our code, versions, instructions, number of threads."""
    cpu = (platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    return f"{VERSION}/{torch.__version__}/{transformers.__version__}/{cpu}"
