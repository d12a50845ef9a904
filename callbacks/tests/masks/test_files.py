"""Mask files are safetensors files; a file that is not a whole one is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from influence_masking import Mask, MaskingError
from influence_masking.masks import files
from influence_masking.masks.mask import FORMAT, _checksum


def a_mask() -> Mask:
    flags = {"a.weight": torch.rand(5, 7) < 0.4, "b.weight": torch.rand(16) < 0.5, "empty": torch.zeros(0, 3) > 0}
    return Mask.from_flags(flags, score="taylor", note="ü")


def test_a_mask_file_is_a_safetensors_file_with_its_provenance(tmp_path: Path) -> None:
    mask = a_mask()
    mask.save(tmp_path / "mask.safetensors", model="tiny")
    with safe_open(tmp_path / "mask.safetensors", "pt") as file:
        assert set(file.keys()) == set(mask.packed)
        assert all(torch.equal(file.get_tensor(name), packed) for name, packed in mask.packed.items())
        assert json.loads(file.metadata()["provenance"]) == {"score": "taylor", "note": "ü", "model": "tiny"}


def test_a_file_of_an_earlier_release_is_read() -> None:
    mask = Mask.load(Path(__file__).parent / "mask_of_0_1_0.safetensors")
    assert list(mask.shapes) == ["b.weight", "a.weight", "empty"]
    assert mask.flags("a.weight").flatten().nonzero().flatten().tolist() == [0, 5, 11]
    assert mask.flags("b.weight").tolist() == [True] * 9 + [False] * 4
    assert mask.provenance == {"score": "taylor", "note": "ü"}


def test_bits_that_share_memory_or_are_not_contiguous_are_written_whole(tmp_path: Path) -> None:
    storage = torch.arange(6, dtype=torch.uint8)
    mask = Mask({"x": (24,), "y": (24,)}, {"x": storage[::2], "y": storage[3:]})
    mask.save(tmp_path / "file")
    assert {name: bits.tolist() for name, bits in Mask.load(tmp_path / "file").packed.items()} == {
        "x": [0, 2, 4],
        "y": [3, 4, 5],
    }


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
    "not JSON": file_of(b"{never"),
    "not text": file_of(b"\xff\xfe\xff"),
    "deeply nested": file_of(b"[" * 100_000),
    "not an object": file_of([1, 2]),
    "another type": file_of({"a": entry(dtype="F32")}),
    "entry of another kind": file_of({"a": 3}),
    "missing shape": file_of({"a": {"dtype": "U8", "data_offsets": [0, 4]}}),
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
    with pytest.raises(MaskingError, match=r"file is damaged or not a mask file: .*Save the mask again"):
        files.read(tmp_path / "file")


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
    files.write(tmp_path / "file", {"x": torch.zeros(3, dtype=torch.uint8)}, {"format": "pt"})
    with pytest.raises(MaskingError, match="format"):
        Mask.load(tmp_path / "file")


@pytest.mark.parametrize("change", [{"shapes": "{}"}, {"shapes": "[]"}, {"shapes": '{"x": [9]}'}, {"provenance": "3"}])
def test_metadata_that_does_not_fit_is_refused(change: dict, tmp_path: Path) -> None:
    metadata = {"format": FORMAT, "shapes": '{"x": [24]}', "provenance": "{}", "digest": ""} | change
    metadata["checksum"] = _checksum(metadata)
    files.write(tmp_path / "file", {"x": torch.zeros(3, dtype=torch.uint8)}, metadata)
    with pytest.raises(MaskingError, match=r"Cannot read mask file .*file\. The mask is damaged"):
        Mask.load(tmp_path / "file")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mask.safetensors"
    mask = a_mask()
    mask.save(path)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        files.write(path, {}, {})
    monkeypatch.undo()
    assert Mask.load(path) == mask
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("tensor", [torch.zeros(3), torch.zeros(4, dtype=torch.uint8), torch.zeros(3, 1).byte()])
def test_tensors_of_another_type_or_shape_are_refused(tensor: torch.Tensor, tmp_path: Path) -> None:
    metadata = {"format": FORMAT, "shapes": '{"x": [24]}', "provenance": "{}", "digest": ""}
    metadata["checksum"] = _checksum(metadata)
    files.write(tmp_path / "file", {"x": tensor}, metadata)
    with pytest.raises(MaskingError, match=r"file\. The mask is damaged: x needs 24 packed bits, found torch"):
        Mask.load(tmp_path / "file")
