"""Mask files are safetensors files, and a file that is not, to the byte, is refused."""

import json
from pathlib import Path

import pytest
import torch

from influence_masking import Mask, MaskingError
from influence_masking.masks import tensorfile
from influence_masking.masks.mask import FORMAT


def a_mask() -> Mask:
    flags = {"a.weight": torch.rand(5, 7) < 0.4, "b.weight": torch.rand(16) < 0.5, "empty": torch.zeros(0, 3) > 0}
    return Mask.from_flags(flags, score="taylor", note="ü")


def test_the_safetensors_package_reads_a_mask(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    mask = a_mask()
    mask.save(tmp_path / "mask.safetensors", model="tiny")
    with safetensors.safe_open(tmp_path / "mask.safetensors", "pt") as file:
        assert set(file.keys()) == set(mask.packed)
        assert all(torch.equal(file.get_tensor(name), packed) for name, packed in mask.packed.items())
        assert json.loads(file.metadata()["provenance"]) == {"score": "taylor", "note": "ü", "model": "tiny"}


def test_a_file_that_the_safetensors_package_wrote_is_read(tmp_path: Path) -> None:
    torch_files = pytest.importorskip("safetensors.torch")
    tensors = {"x": torch.arange(9, dtype=torch.uint8), "y": torch.ones(2, 2, dtype=torch.uint8)}
    torch_files.save_file(tensors, tmp_path / "file", metadata={"key": "value"})
    read, metadata = tensorfile.read(tmp_path / "file")
    assert {name: tensor.tolist() for name, tensor in read.items()} == {n: t.tolist() for n, t in tensors.items()}
    assert metadata == {"key": "value"}


def file_of(header: object, data: bytes = b"\1\2\3\4") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def entry(start: int = 0, end: int = 4, **changes: object) -> dict:
    return {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]} | changes


MALFORMED = {
    "empty": b"",
    "shorter than its length": b"\1\0\0",
    "header past the end": (1000).to_bytes(8, "little") + b"{}",
    "huge header": (2**63).to_bytes(8, "little") + b"{}",
    "no JSON": file_of(b"{never"),
    "no text": file_of(b"\xff\xfe\xff"),
    "deeply nested": file_of(b"[" * 100_000),
    "no object": file_of([1, 2]),
    "a key twice": file_of(b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{}}'),
    "another type": file_of({"a": entry(dtype="F32")}),
    "entry of another kind": file_of({"a": 3}),
    "missing shape": file_of({"a": {"dtype": "U8", "data_offsets": [0, 4]}}),
    "unknown field": file_of({"a": entry(extra=1)}),
    "negative offset": file_of({"a": entry(-4, 0, shape=[4])}),
    "boolean size": file_of({"a": entry(shape=[True, 4])}),
    "size of another length": file_of({"a": entry(shape=[5])}),
    "past the data": file_of({"a": entry(0, 8)}),
    "gap": file_of({"a": entry(1, 4)}),
    "overlap": file_of({"a": entry(0, 3), "b": entry(2, 4)}),
    "bytes left over": file_of({"a": entry(0, 3)}),
    "metadata of numbers": file_of({"__metadata__": {"a": 1}, "a": entry()}),
    "a pickle": b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(MaskingError, match=r"file as a mask file, found"):
        tensorfile.read(tmp_path / "file")


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(MaskingError, match=r"nowhere\.safetensors"):
        Mask.load(tmp_path / "nowhere.safetensors")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "mask.safetensors"
    a_mask().save(path)
    content = bytearray(path.read_bytes())
    content[-2] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(MaskingError, match="damaged"):
        Mask.load(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    tensorfile.write(tmp_path / "file", {"x": torch.zeros(3, dtype=torch.uint8)}, {"format": "pt"})
    with pytest.raises(MaskingError, match="format"):
        Mask.load(tmp_path / "file")


@pytest.mark.parametrize("change", [{"shapes": "{}"}, {"shapes": "[]"}, {"shapes": '{"x": [9]}'}, {"provenance": "3"}])
def test_metadata_that_does_not_fit_is_refused(change: dict, tmp_path: Path) -> None:
    metadata = {"format": FORMAT, "shapes": '{"x": [24]}', "provenance": "{}", "digest": ""} | change
    tensorfile.write(tmp_path / "file", {"x": torch.zeros(3, dtype=torch.uint8)}, metadata)
    with pytest.raises(MaskingError):
        Mask.load(tmp_path / "file")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mask.safetensors"
    mask = a_mask()
    mask.save(path)

    def fail(_: torch.Tensor) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorfile, "bytes_of", fail)
    with pytest.raises(KeyboardInterrupt):
        tensorfile.write(path, mask.packed, {})
    monkeypatch.undo()
    assert Mask.load(path) == mask
