"""Mask files and mask states that are broken anywhere: refused, or read as if they were whole; and nothing is run."""

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Classifier, loader, quiet_trainer

from influence_masking import InfluenceMasking, Mask, MaskingError
from influence_masking.making import MEASUREMENT_FIELDS

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

HEALTH = [hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow]
settings = hypothesis.settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=HEALTH)

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=9),
    st.lists(st.integers(-2, 9), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file of a mask over three parameters."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (5, 7), "b.weight": (16,), "empty": (0, 3)}
    flags = {name: torch.rand(shape, generator=generator) < 0.4 for name, shape in shapes.items()}
    Mask.from_flags(flags, score="taylor", num_samples=100).save(tmp_path / "mask.safetensors")
    return tmp_path / "mask.safetensors"


def check(path: Path, content: bytes) -> None:
    """Assert that a broken file is refused by name or gives the mask of the whole one, which it is afterwards."""
    whole, before = Mask.load(path), path.read_bytes()
    path.write_bytes(content)
    found, refusal = load_or_refuse(path)
    path.write_bytes(before)
    if found is None:
        assert path.name in refusal
    else:
        assert (found, found.shapes, found.provenance) == (whole, whole.shapes, whole.provenance)


def load_or_refuse(path: Path) -> tuple[Mask | None, str]:
    """Return the mask of a file, or the message by which it is refused."""
    try:
        return Mask.load(path), ""
    except MaskingError as error:
        return None, str(error)


@settings
@hypothesis.given(data=st.data())
def test_a_file_with_changed_bytes_is_refused_or_gives_its_mask(path: Path, data: Any) -> None:
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[place] ^= data.draw(st.integers(1, 255))
    check(path, bytes(content))


@settings
@hypothesis.given(data=st.data())
def test_a_file_that_is_cut_or_longer_is_refused(path: Path, data: Any) -> None:
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content)))
    check(
        path,
        content[:place] + data.draw(st.binary(max_size=9)) + content[data.draw(st.integers(place, len(content))) :],
    )


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place within a value: its container and the key there."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def broken(data: Any, value: Any) -> Any:
    """Return a copy of a value with something in it replaced, removed or added."""
    changed = copy.deepcopy(value)
    container, key = data.draw(st.sampled_from(list(places(changed))))
    kind = data.draw(st.sampled_from(["replace", "remove", "add"]))
    if kind == "remove":
        del container[key]
    elif kind == "add" and isinstance(container, dict):
        container[data.draw(st.text(max_size=5))] = data.draw(JUNK)
    else:
        container[key] = data.draw(JUNK)
    return changed


@settings
@hypothesis.given(data=st.data())
def test_a_file_with_a_broken_header_is_refused_or_gives_its_mask(path: Path, data: Any) -> None:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    encoded = json.dumps(broken(data, json.loads(content[8:end]))).encode()
    check(path, len(encoded).to_bytes(8, "little") + encoded + content[end:])


@settings
@hypothesis.given(data=st.data())
def test_a_file_with_broken_metadata_is_refused_or_gives_its_mask(path: Path, data: Any) -> None:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    name = data.draw(st.sampled_from(["shapes", "provenance"]))
    header["__metadata__"][name] = json.dumps(broken(data, json.loads(header["__metadata__"][name])))
    encoded = json.dumps(header).encode()
    check(path, len(encoded).to_bytes(8, "little") + encoded + content[end:])


@settings
@hypothesis.given(data=st.data())
def test_a_broken_state_in_a_checkpoint_is_refused_or_gives_its_mask(path: Path, data: Any) -> None:
    whole = Mask.load(path)
    state = {"mask": whole.state_dict()} | dict.fromkeys(MEASUREMENT_FIELDS)
    callback = InfluenceMasking()
    try:
        callback.load_state_dict(broken(data, state))
    except MaskingError:
        return
    assert callback.mask == whole


@pytest.mark.parametrize(
    "metadata", [{"provenance": "[" * 100_000}, {"shapes": '{"x": [-3, -8]}'}, {"shapes": '{"x": ["3"]}'}]
)
def test_forged_metadata_is_refused(metadata: dict, path: Path) -> None:
    from influence_masking.masks import files
    from influence_masking.masks import mask as masks

    known = {"format": masks.FORMAT, "digest": "", "shapes": '{"x": [24]}', "provenance": "{}"} | metadata
    known["checksum"] = masks._checksum(known)
    files.write(path, {"x": torch.zeros(3, dtype=torch.uint8)}, known)
    with pytest.raises(MaskingError, match="damaged"):
        Mask.load(path)


class Payload:
    """An object that creates a file where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.trace), "w")


@pytest.mark.parametrize("write", [lambda one, path: path.write_bytes(pickle.dumps(one)), torch.save])
def test_a_payload_in_the_place_of_a_mask_is_not_run(write: Any, tmp_path: Path) -> None:
    write(Payload(tmp_path / "executed"), tmp_path / "mask.safetensors")
    masking = InfluenceMasking(targets=["net.0.weight"], mask_path=tmp_path / "mask.safetensors")
    trainer = quiet_trainer(masking)
    with pytest.raises(MaskingError, match=r"mask\.safetensors is damaged or not a mask file"):
        trainer.fit(Classifier(), loader())
    assert not (tmp_path / "executed").exists()
