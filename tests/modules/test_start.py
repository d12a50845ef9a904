from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modules import FullFineTuning, StartError
from modules.start import Start, StartReference

REFERENCE = StartReference(
    "some/backbone", "b" * 64, 3, "sst2", "d" * 64, "t" * 64, 4, "head_init", epochs=1, learning_rate=0.01
)


def make_start(folder: Path, reference: StartReference = REFERENCE) -> Start:
    path = folder / "outputs" / "study" / "sst2" / "baseline" / "seed4" / "start.safetensors"
    start = Start(path, {"weight": torch.arange(6.0).reshape(3, 2)}, reference)
    start.save()
    return start


def test_a_start_is_read_back_as_it_was_saved_and_is_small(tmp_path):
    start = make_start(tmp_path)
    loaded = Start.load(start.path)
    assert loaded.reference == REFERENCE
    assert torch.equal(loaded.head["weight"], start.head["weight"])
    assert start.path.stat().st_size < 4096
    assert [p.name for p in start.path.parent.iterdir()] == ["start.safetensors"]


def test_a_missing_start_is_told_by_its_path(tmp_path):
    with pytest.raises(StartError, match=r"no head checkpoint at .*nowhere"):
        Start.load(tmp_path / "nowhere.safetensors")


def test_a_start_of_another_backbone_is_refused(tmp_path, tiny_qwen):
    path = make_start(tmp_path).path
    with pytest.raises(StartError, match=r"was made on the backbone 'some/backbone'"):
        FullFineTuning(backbone=tiny_qwen, num_labels=3, start=str(path))


def test_a_start_for_another_number_of_classes_is_refused(tmp_path, tiny_qwen):
    fingerprint = FullFineTuning(backbone=tiny_qwen, num_labels=3).backbone_fingerprint
    path = make_start(tmp_path, replace(REFERENCE, backbone_fingerprint=fingerprint)).path
    with pytest.raises(StartError, match="was made for 3 classes, but the data has 5"):
        FullFineTuning(backbone=tiny_qwen, num_labels=5, start=str(path))


@pytest.mark.parametrize(("fingerprint", "seed"), [("x" * 64, 4), ("d" * 64, 5)])
def test_a_start_from_other_splits_or_another_seed_is_refused(tmp_path, fingerprint, seed):
    start = make_start(tmp_path)
    start.check_data("d" * 64, "t" * 64, 4)
    with pytest.raises(StartError, match="other rows, sizes or seed"):
        start.check_data(fingerprint, "t" * 64, seed)


def test_a_start_from_another_tokenizer_is_refused(tmp_path):
    with pytest.raises(StartError, match="was made with another tokenizer"):
        make_start(tmp_path).check_data("d" * 64, "u" * 64, 4)


def test_a_damaged_start_is_refused(tmp_path):
    path = make_start(tmp_path).path
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(StartError, match="is not a head checkpoint"):
        Start.load(path)
