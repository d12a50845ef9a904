"""A peft adapter given as a backbone is merged into its base, or refused with the reason."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, BertModel

from modules import BackboneError, FullFineTuning, LoRA
from modules.backbone import load_backbone, model_type, resolve_tokenizer

TARGETS = ["q_proj", "up_proj"]
FEED = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"], "init_ia3_weights": False}
CLASSES = {None: AutoModel, "CAUSAL_LM": AutoModelForCausalLM, "SEQ_CLS": AutoModelForSequenceClassification}

MERGED: dict[str, PeftConfig] = {
    "of a language model": LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS),
    "of a bare transformer": LoraConfig(target_modules=TARGETS),
    "of a classifier with its head": LoraConfig(task_type="SEQ_CLS", target_modules=TARGETS),
    "with a pattern from outside the transformer": LoraConfig(
        task_type="CAUSAL_LM", target_modules=r"model\.layers\.1\..*\.(v|o)_proj"
    ),
    "of all linear layers": LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"),
    "with an embedding of its own": LoraConfig(
        task_type="CAUSAL_LM", target_modules=TARGETS, modules_to_save=["embed_tokens"]
    ),
    "with biases": LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, bias="all"),
    "rslora": LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, use_rslora=True, r=4),
    "dora": LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, use_dora=True),
    "pissa": LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, init_lora_weights="pissa"),
    "adalora": AdaLoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS, total_step=10),
    "loha": LoHaConfig(task_type="CAUSAL_LM", target_modules=TARGETS),
    "lokr": LoKrConfig(task_type="CAUSAL_LM", target_modules=TARGETS),
    "oft": OFTConfig(task_type="CAUSAL_LM", target_modules=TARGETS, oft_block_size=4),
    "ia3": IA3Config(task_type="CAUSAL_LM", **FEED),
}


def save(base: str, folder: Path, config: PeftConfig) -> torch.nn.Module:
    """Save an adapter with random values; return what peft itself makes of it, merged, without the head."""
    torch.manual_seed(1)
    model = CLASSES[config.task_type].from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder)
    merged = adapted.merge_and_unload()
    return merged if config.task_type is None else merged.model


@pytest.fixture
def lora(tiny_qwen, tmp_path) -> Path:
    """Folder of an adapter of a tiny Qwen2."""
    save(tiny_qwen, tmp_path / "adapter", LoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS))
    return tmp_path / "adapter"


def change(folder: Path, **values: object) -> None:
    """Change the adapter's configuration."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("kind", MERGED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_is_merged_as_peft_merges_it(kind, tiny_qwen, tmp_path):
    expected = dict(save(tiny_qwen, tmp_path, MERGED[kind]).named_parameters())
    plain = dict(load_backbone(tiny_qwen).named_parameters())
    found = load_backbone(str(tmp_path))
    weights = dict(found.named_parameters())
    assert list(weights) == list(plain)
    assert any(not torch.equal(weights[name], plain[name]) for name in plain)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6, msg=name)
        assert weight.requires_grad
    assert found.training


def test_an_adapter_of_an_encoder_is_merged(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path / "base")
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(tmp_path / "base"), config)
    model.save_pretrained(tmp_path / "adapter")
    expected = model.merge_and_unload().bert.encoder.layer[1].attention.self.query.weight
    found = load_backbone(str(tmp_path / "adapter")).encoder.layer[1].attention.self.query.weight
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_arms_start_from_the_merged_weights_which_have_a_fingerprint_of_their_own(lora, tiny_qwen, recwarn, capfd):
    plain, full = FullFineTuning(backbone=tiny_qwen), FullFineTuning(backbone=str(lora))
    adapted = LoRA(backbone=str(lora))
    assert plain.backbone_fingerprint != full.backbone_fingerprint == adapted.backbone_fingerprint
    assert all(parameter.requires_grad for parameter in full.parameters())
    assert len([name for name, p in adapted.named_parameters() if p.requires_grad]) == 2 * 7 * 2 + 1
    assert not [warning for warning in recwarn if "PEFT" in str(warning.message)]  # of a second adapter
    said = f"The backbone '{lora}' is a peft adapter: it is merged into its base '{tiny_qwen}'.\n"
    assert capfd.readouterr().err.count(said) == 1  # though two arms have loaded it


def test_the_family_and_the_tokenizer_of_an_adapter_are_those_of_its_base(lora, tiny_qwen):
    assert model_type(str(lora)) == "qwen2"
    assert resolve_tokenizer(str(lora)) == tiny_qwen
    shutil.copy(Path(tiny_qwen) / "tokenizer_config.json", lora)
    assert resolve_tokenizer(str(lora)) == str(lora)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda lora: change(lora, base_model_name_or_path=None), "its base_model_name_or_path is None"),
        (lambda lora: change(lora, base_model_name_or_path=str(lora)), "which is no whole model"),
        (lambda lora: change(lora, base_model_name_or_path=str(lora / "gone")), "gone', which could not be loaded"),
        (lambda lora: (lora / "adapter_config.json").write_text("{"), "names no base model (JSONDecodeError"),
        (lambda lora: (lora / "adapter_config.json").write_text("[]"), "names no base model (TypeError"),
        (lambda lora: change(lora, peft_type="NEW"), "cannot be merged into its base: KeyError: 'NEW'"),
        (lambda lora: change(lora, target_modules=["gone"]), "Target modules {'gone'} not found"),
        (lambda lora: change(lora, target_modules=["q_proj"]), "up_proj.lora_A.weight is not in its base"),
        (lambda lora: change(lora, target_modules=[*TARGETS, "v_proj"]), "lora_A.weight is not in its weights"),
        (lambda lora: change(lora, r=4), "size mismatch"),
        (lambda lora: change(lora, megatron_config={"a": 1}, megatron_core="antigravity"), "its megatron_config"),
        (lambda lora: (lora / "adapter_model.safetensors").unlink(), "FileNotFoundError"),
        (lambda lora: (lora / "adapter_model.safetensors").write_text("x"), "SafetensorError"),
        (lambda lora: (lora / "model.safetensors").write_text("x"), "a whole model (model.safetensors), and it does"),
        (lambda lora: (lora / "pytorch_model.bin").write_text("x"), "a whole model (pytorch_model.bin), and it does"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_the_reason(break_it, message, lora):
    break_it(lora)
    with pytest.raises(BackboneError, match=re.escape(message)) as refused:
        load_backbone(str(lora))
    assert str(lora) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    ],
)
def test_an_adapter_that_is_not_in_the_weights_is_refused(config, tiny_qwen, tmp_path):
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_qwen), config).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=rf"it is of kind {config.peft_type.value}, which is not in the weights"):
        load_backbone(str(tmp_path))


def test_an_adapter_of_another_model_is_refused(lora, tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path / "bert")
    change(lora, base_model_name_or_path=str(tmp_path / "bert"))
    with pytest.raises(
        BackboneError, match="cannot be merged into its base: NoMatchingPeftModuleError: Target modules"
    ):
        load_backbone(str(lora))
