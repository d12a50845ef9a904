"""Files that carry code: it does not run, and the file is refused in one message."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from datamodules import DataError, HubTextDataModule
from datamodules.tokenizers import load_tokenizer
from lightning_app.grid.condition import Condition
from lightning_app.grid.experiment import build_conditions, parse_options, run_conditions
from lightning_app.grid.workers import InProcess

BEST = Path("docstrings") / "lora" / "seed0" / "checkpoints" / "best.ckpt"


def conditions_of(words: list[str], folder: Path) -> list[Condition]:
    """Return the conditions of an experiment in a folder."""
    return build_conditions(parse_options(words), folder)


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_with_a_payload_is_refused(command, original, malicious, words, refused, trace, tmp_path):
    checkpoint = malicious(tmp_path / "evil.ckpt", **torch.load(original / BEST, weights_only=True))
    told = refused(command, *words("lora", f"--ckpt_path={checkpoint}"))
    assert told.startswith(f"{checkpoint} cannot be read as a checkpoint")
    assert "Nothing in it was executed" in told
    assert not trace.exists()


def test_weights_only_cannot_be_switched_off(words, refused, original):
    told = refused("validate", *words("lora", f"--ckpt_path={original / BEST}", "--weights_only=false"))
    assert "nothing in a checkpoint is ever executed" in told


def test_an_experiment_does_not_go_on_from_a_checkpoint_with_a_payload(
    study, experiment_words, malicious, capsys, trace, tmp_path
):
    condition = next(one for one in conditions_of(experiment_words, study) if one.arm == "lora")
    (condition.folder / "metrics.json").unlink()
    checkpoint = condition.folder / "checkpoints" / "last.ckpt"
    is_archive = zipfile.is_zipfile(malicious(checkpoint, **torch.load(study / BEST, weights_only=True)))
    failures = run_conditions([condition], [condition], {}, InProcess())
    assert not trace.exists()
    assert "Traceback" not in "".join(capsys.readouterr())
    if is_archive:
        assert "last.ckpt cannot be read as a checkpoint: it holds more than weights" in failures[condition]
    else:  # it is no checkpoint at all: the condition began anew
        assert failures == {}
        assert condition.is_complete


def test_a_checkpoint_does_not_choose_the_class_of_the_model(original, words, influence, trace, tmp_path, monkeypatch):
    (tmp_path / "chosen.py").write_text(f"open({str(trace)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = torch.load(original / BEST, weights_only=True)
    torch.save(checkpoint | {"hyper_parameters": {"_class_path": "chosen.Model", "rank": 4}}, tmp_path / "one.ckpt")
    assert influence("validate", *words("lora", f"--ckpt_path={tmp_path / 'one.ckpt'}")) == 0
    assert not trace.exists()


def test_a_start_with_a_payload_is_refused(malicious, words, refused, trace, tmp_path):
    start = malicious(tmp_path / "start.safetensors", weight=torch.zeros(7, 32))
    told = refused("fit", *words("lora", f"--model.start={start}"))
    assert f"{start} is not a head checkpoint" in told
    assert not trace.exists()


def test_a_mask_file_with_a_payload_is_refused(malicious, words, refused, trace, tmp_path):
    mask = malicious(tmp_path / "mask.safetensors", packed=torch.zeros(3, dtype=torch.uint8))
    callback = ["--trainer.callbacks+=influence_masking.InfluenceMasking", f"--trainer.callbacks.mask_path={mask}"]
    told = refused("fit", *words("full_ft", *callback))
    assert f"{mask} is damaged or not a mask file" in told
    assert not trace.exists()


@pytest.fixture
def backbone(tiny_qwen, tmp_path) -> Path:
    """Return a copy of a backbone's folder."""
    return shutil.copytree(tiny_qwen, tmp_path / "backbone")


def with_code(folder: Path, trace: Path, model_type: str) -> None:
    """Add Python files that transformers would run if it trusted them."""
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')\n")
    for name, auto in (("config.json", "AutoModel"), ("tokenizer_config.json", "AutoTokenizer")):
        content = json.loads((folder / name).read_text())
        content |= {"auto_map": {auto: "evil.Evil", "AutoConfig": "evil.Evil"}, "model_type": model_type}
        content |= {"tokenizer_class": "Evil"} if model_type == "evil" else {}
        (folder / name).write_text(json.dumps(content))


def test_code_beside_a_backbone_does_not_run(backbone, words, refused, influence, trace):
    with_code(backbone, trace, "evil")
    told = refused("fit", *words("baseline", f"--model.backbone={backbone}"))
    assert "contains custom code which must be executed" in told
    assert "code that comes with it is not run" in told
    with pytest.raises(DataError, match="could not be loaded"):
        load_tokenizer(str(backbone), 16)
    with_code(backbone, trace, "qwen2")  # what transformers has a class of its own for needs no code
    assert influence("fit", *words("baseline", f"--model.backbone={backbone}", "--trainer.fast_dev_run=1")) == 0
    assert not trace.exists()


def test_pickled_weights_of_a_backbone_are_not_read(backbone, malicious, words, refused, trace):
    (backbone / "model.safetensors").unlink()
    malicious(backbone / "pytorch_model.bin")
    told = refused("fit", *words("baseline", f"--model.backbone={backbone}"))
    assert "no file named model.safetensors" in told
    assert "Its weights must be safetensors" in told
    assert not trace.exists()


def test_a_backbone_that_lacks_weights_is_refused(backbone, words, refused):
    from safetensors.torch import load_file, save_file

    weights = load_file(backbone / "model.safetensors")
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, backbone / "model.safetensors", metadata={"format": "pt"})
    told = refused("fit", *words("baseline", f"--model.backbone={backbone}"))
    assert "lack layers.1.mlp.up_proj.weight, which would be random" in told


def test_the_loading_script_of_a_dataset_does_not_run(tiny_qwen, tmp_path, trace):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(trace)!r}, 'w')\n")
    labels = ["a", "b"]
    module = HubTextDataModule(tiny_qwen, str(folder), "scripted", labels, cache_dir=tmp_path, max_length=16)
    with pytest.raises(DataError, match=r"scripted.*could not be loaded"):
        module.setup()
    assert not trace.exists()


@pytest.mark.parametrize("command", ["fit", "experiment"])
def test_a_python_object_in_yaml_is_not_made(command, words, refused, trace, tmp_path):
    (tmp_path / "evil.yaml").write_text(f"name: !!python/object/apply:builtins.open ['{trace}', 'w']\n")
    told = refused(command, *(words("lora") if command == "fit" else []), "-c", tmp_path / "evil.yaml")
    assert "could not determine a constructor for the tag" in told
    assert not trace.exists()
