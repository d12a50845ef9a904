"""Checkpoints that are damaged, changed or another arm's: one message each, and nothing is evaluated."""

import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from influence_masking import Mask


@pytest.fixture
def changed(original, tmp_path):
    """Write an arm's best checkpoint, changed by a function; return its path."""

    def write(arm: str, change) -> Path:
        checkpoint = torch.load(
            original / "docstrings" / arm / "seed0" / "checkpoints" / "best.ckpt", weights_only=True
        )
        torch.save(change(checkpoint) or checkpoint, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return write


def weights(key: str, value):
    """Return a change of one of the weights."""
    return lambda checkpoint: checkpoint["state_dict"].update({key: value})


def without(name: str, inside: str | None = None):
    def change(checkpoint: dict) -> None:
        del (checkpoint[inside] if inside else checkpoint)[name]

    return change


CHANGES = {
    "wrong shape": (
        "lora",
        weights("head.weight", torch.zeros(7, 5)),
        "as head.weight, but the model needs numbers of shape (7, 32)",
    ),
    "another kind of number": ("lora", weights("head.weight", torch.zeros(7, 32).int()), "it has torch.int32 of shape"),
    "a weight too many": ("lora", weights("extra", torch.zeros(1)), "as extra, but the model needs nothing"),
    "a weight missing": ("lora", without("head.weight", "state_dict"), "it has nothing as head.weight"),
    "NaN": (
        "lora",
        weights("head.weight", torch.full((7, 32), float("nan"))),
        "in head.weight that are NaN or infinite",
    ),
    "infinite": (
        "baseline",
        weights("head.weight", torch.full((7, 32), torch.inf)),
        "in head.weight that are NaN or infinite",
    ),
    "no mask": ("influence", without("mask"), "The checkpoint holds no mask"),
    "a mask of another kind": ("influence", lambda c: {**c, "mask": 3}, "The mask is damaged: it lacks"),
    "a damaged mask": ("influence", without("packed", "mask"), "The mask is damaged: it lacks"),
    "no condition": ("lora", without("condition"), "its 'condition' is missing or of a wrong type"),
    "a condition of tensors": (
        "lora",
        lambda c: {**c, "condition": {"seed": torch.zeros(2)}},
        "its 'condition' is missing",
    ),
    "weights that are numbers": ("lora", weights("head.weight", 3), "its 'state_dict' is missing or of a wrong type"),
    "a list": ("lora", lambda c: [1, 2], "its 'state_dict' is missing or of a wrong type"),
    "another seed": ("lora", lambda c: {**c, "condition": c["condition"] | {"seed": 9}}, "made with seed 9"),
    "another backbone": (
        "lora",
        lambda c: {**c, "backbone": {"name": "x", "fingerprint": 5}},
        "belongs to the backbone 'x'",
    ),
}


@pytest.mark.parametrize(("arm", "change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_changed_checkpoint_is_refused(arm, change, message, changed, words, refused, tmp_path):
    told = refused("validate", *words(arm, f"--ckpt_path={changed(arm, change)}"))
    assert message in told
    assert not list(tmp_path.rglob("metrics.json"))


def test_a_mask_over_other_weights_is_refused(changed, words, refused):
    def change(checkpoint: dict) -> None:
        mask = checkpoint["mask"]
        name = next(iter(mask["shapes"]))
        for part in ("shapes", "packed"):
            mask[part]["elsewhere"] = mask[part].pop(name)
        mask["digest"] = Mask({n: tuple(shape) for n, shape in mask["shapes"].items()}, mask["packed"]).digest

    assert "has no such parameter" in refused(
        "validate", *words("influence", f"--ckpt_path={changed('influence', change)}")
    )


def test_another_arms_checkpoint_is_refused(original, words, refused):
    checkpoint = original / "docstrings" / "baseline" / "seed0" / "checkpoints" / "best.ckpt"
    told = refused("validate", *words("lora", f"--ckpt_path={checkpoint}"))
    assert "made with arm 'Baseline', but this run has 'LoRA'" in told


def test_a_truncated_checkpoint_is_refused(changed, words, refused):
    path = changed("lora", lambda checkpoint: None)
    path.write_bytes(path.read_bytes()[:-200])
    assert "File is not a zip file" in refused("validate", *words("lora", f"--ckpt_path={path}"))


def test_a_flipped_bit_in_the_weights_is_refused(changed, words, refused):
    path = changed("lora", lambda checkpoint: None)
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 1000] ^= 1
    path.write_bytes(content)
    assert f"the checksum of {largest.filename} is wrong" in refused("validate", *words("lora", f"--ckpt_path={path}"))


@pytest.mark.parametrize(("given", "what"), [("", "a folder"), ("start", "a head checkpoint"), ("mask", "a mask")])
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "export"])
def test_what_is_given_instead_of_a_checkpoint_is_named(given, what, command, original, words, refused, tmp_path):
    run = original / "docstrings" / ("baseline" if given == "start" else "influence") / "seed0"
    path = run / f"{given}.safetensors" if given else run
    (tmp_path / "table.csv").write_text("text\nfine\n")
    options = {"predict": ["--input=table.csv", "--output=out.csv"], "export": ["--out=out"]}
    if command in options:
        told = refused(command, f"--ckpt={path}", *options[command])
    else:
        told = refused(command, *words("lora", f"--ckpt_path={path}"))
    assert f"{path} is {what}. Give a checkpoint" in told
    assert "checkpoints/best.ckpt" in told
    assert "elete" not in told


@pytest.mark.parametrize("given", ["", "checkpoints/best.ckpt", "mask.safetensors"])
def test_what_is_given_instead_of_a_start_is_named(given, original, words, refused):
    path = original / "docstrings" / "influence" / "seed0" / given
    told = refused("fit", *words("lora", f"--model.start={path}"))
    kinds = {"": "a folder", "mask.safetensors": "a mask"}
    assert (
        f"{path} is not a head checkpoint but {kinds.get(given, 'a checkpoint or another archive')}. Give the" in told
    )
    assert "elete" not in told


def test_an_unchanged_checkpoint_gives_the_same_metrics(changed, original, words, influence, tmp_path):
    path = changed("influence", lambda checkpoint: None)
    assert influence("validate", *words("influence", f"--ckpt_path={path}")) == 0
    run = Path("docstrings") / "influence" / "seed0" / "predictions.parquet"
    ours, theirs = tmp_path / "outputs" / "mine" / run, original / run
    assert ours.read_bytes() == theirs.read_bytes()
    shutil.rmtree(tmp_path / "outputs")
