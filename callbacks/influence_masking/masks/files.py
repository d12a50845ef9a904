"""Safetensors files of packed bits: written atomically, and every failure to read one is a `MaskingError`."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from influence_masking.errors import MaskingError


def write(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors atomically: a reader finds the old file or the whole new one.

    Args:
        path: The file; its folder is created if it is missing.
        tensors: CPU tensors by name.
        metadata: Strings by key.

    Raises:
        OSError: If it cannot be written; names the file.
    """
    # `safetensors.torch.save` would refuse tensors that share memory
    content = save({name: tensor.contiguous().numpy() for name, tensor in tensors.items()}, dict(metadata))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with open(number, "wb") as file:  # noqa: PTH123
            file.write(content)
        temporary.chmod(0o644)  # mkstemp makes a file that only its owner can read
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a file.

    Raises:
        MaskingError: If the file is missing, or is not a safetensors file from the first byte to the last.
    """
    try:
        with safe_open(path, "pt") as file:
            # copies, because the tensors are views of a memory map that another program may overwrite
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError as error:
        raise MaskingError(f"Cannot read mask file {path}: {error}. Check the path.") from error
    except SafetensorError as error:
        raise MaskingError(f"{path} is damaged or not a mask file: {error}. Save the mask again.") from error
