"""Backbones that cannot run, or are adapters, in a whole experiment."""

import json
import shutil
from pathlib import Path

import torch
from integration_helpers import metrics_of
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

ARMS = ["baseline", "influence", "lora", "full_ft"]


def run(influence, backbone: Path, data_cache: Path, *more: str) -> int:
    words = ["--datasets", "docstrings", "--arms", *ARMS, "--backbone", backbone, "--name", "mine", "--quick"]
    sets = [f"data.cache_dir={data_cache}", "trainer.max_epochs=1", "trainer.accelerator=cpu", *more]
    return influence("experiment", *words, "--set", *sets)


def test_arms_whose_baseline_failed_are_named_once_and_told_no_other_cause(
    tiny_qwen, data_cache, influence, tmp_path, capsys
):
    shutil.copytree(tiny_qwen, tmp_path / "short")
    config = tmp_path / "short" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 32}))
    assert run(influence, tmp_path / "short", data_cache) == 1
    errors = capsys.readouterr().err
    assert [line for line in errors.splitlines() if "failed" in line] == [
        f"failed: docstrings/baseline/seed0: data.max_length is 64, but the backbone {str(tmp_path / 'short')!r} reads "
        "at most 32 tokens. Lower data.max_length. Not run, because they start from it: influence, lora, full_ft."
    ]
    assert "Make it" not in errors
    assert not list(tmp_path.rglob("checkpoints"))
    assert not (tmp_path / "outputs" / "mine-quick" / "docstrings" / "lora").exists()
    assert run(influence, tmp_path / "short", data_cache, "data.max_length=32") == 0


def test_an_experiment_on_an_adapter_is_one_on_the_merged_model(tiny_qwen, data_cache, influence, tmp_path, capsys):
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_qwen), config)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().model.save_pretrained(tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tiny_qwen) / name, tmp_path / "merged")
    found = {}
    for name in ("adapter", "merged"):
        assert run(influence, tmp_path / name, data_cache, "--overwrite") == 0
        said = "is a peft adapter: it is merged into its base" in capsys.readouterr().err
        assert said == (name == "adapter")
        folder = tmp_path / "outputs" / "mine-quick" / "docstrings"
        found[name] = [metrics_of(folder / arm / "seed0") | {"backbone": None} for arm in ARMS]
        assert [record["trains"] for record in found[name]] == ["head", "none", "adapter", "all"]
    assert found["adapter"] == found["merged"]
