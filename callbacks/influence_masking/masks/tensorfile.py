"""The safetensors file format, for tensors of bytes: a header that is checked strictly, and data that is never run.

A file is the length of the header in bytes (8 bytes, little-endian), the header (JSON, one object with an entry a
tensor and, under ``__metadata__``, strings by string), and the tensors' bytes without a gap. Source:
https://github.com/huggingface/safetensors#format
"""

import itertools
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from influence_masking.errors import MaskingError

MAX_HEADER_BYTES = 100_000_000


def write(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes uint8 tensors atomically: a reader finds the old file or the whole new one.

    Args:
        path: The file; its folder is made if missing.
        tensors: CPU tensors of bytes by name.
        metadata: Strings by string.

    Raises:
        OSError: If it cannot be written; it names the file.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    ends = list(itertools.accumulate((t.numel() for t in tensors.values()), initial=0))
    for (name, tensor), offsets in zip(tensors.items(), itertools.pairwise(ends), strict=True):
        header[name] = {"dtype": "U8", "shape": list(tensor.shape), "data_offsets": list(offsets)}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format aligns the data to 8 bytes
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with open(number, "wb") as file:  # noqa: PTH123
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            for tensor in tensors.values():
                file.write(bytes_of(tensor))
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a file of uint8 tensors.

    Returns:
        The tensors and the metadata.

    Raises:
        MaskingError: If the file is missing or is not, to the byte, what the format says.
    """
    try:
        content = bytearray(Path(path).read_bytes())
    except OSError as error:
        raise MaskingError(f"Asked for the mask file {path}, but it cannot be read: {error}.") from error
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 2 <= size <= min(MAX_HEADER_BYTES, len(content) - 8):
        raise _malformed(path, f"a header of {size} bytes in a file of {len(content)}")
    header = _parse_header(path, bytes(content[8 : 8 + size]))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed(path, "metadata that is not strings by string")
    return _cut(path, header, memoryview(content)[8 + size :]), metadata


def _parse_header(path: str | Path, encoded: bytes) -> dict[str, Any]:
    try:
        header = json.loads(encoded.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise _malformed(path, f"a header that is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _malformed(path, "a header that is not a JSON object")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key appears twice")
    return result


def _cut(path: str | Path, header: dict[str, Any], data: memoryview) -> dict[str, Tensor]:
    """Cuts the data into tensors, which must cover it without gap or overlap."""
    entries = {name: _parse_entry(path, name, entry) for name, entry in header.items()}
    tensors: dict[str, Tensor] = {}
    expected = 0
    for name, (shape, start, end) in sorted(entries.items(), key=lambda item: item[1][1:]):
        if start != expected or end - start != math.prod(shape) or end > len(data):
            raise _malformed(path, f"a tensor {name!r} of shape {shape} at bytes {start} to {end} of {len(data)}")
        flat = torch.frombuffer(data, dtype=torch.uint8, count=end - start, offset=start) if end > start else None
        tensors[name] = (torch.empty(0, dtype=torch.uint8) if flat is None else flat).reshape(shape)
        expected = end
    if expected != len(data):
        raise _malformed(path, f"{len(data) - expected} bytes that belong to no tensor")
    return tensors


def _parse_entry(path: str | Path, name: str, entry: Any) -> tuple[list[int], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _malformed(path, f"an entry for {name!r} without exactly dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if entry["dtype"] != "U8" or not is_shape(shape) or not is_shape(offsets) or len(offsets) != 2:
        raise _malformed(path, f"an entry for {name!r} that is not a tensor of bytes: {entry}")
    return shape, offsets[0], offsets[1]


def is_shape(values: Any) -> bool:
    """Returns whether a value read from a file is a list of sizes."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def bytes_of(tensor: Tensor) -> bytes:
    """Returns the bytes of a uint8 tensor."""
    buffer = bytearray(tensor.numel())
    if buffer:
        torch.frombuffer(buffer, dtype=torch.uint8).copy_(tensor.reshape(-1))
    return bytes(buffer)


def _malformed(path: str | Path, found: str) -> MaskingError:
    return MaskingError(
        f"Asked to read {path} as a mask file, found {found}. The file is damaged or of another kind; save it again."
    )
