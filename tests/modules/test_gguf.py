import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_files import write_gguf
from huggingface_hub import constants
from transformers import AutoTokenizer, LlamaConfig, LlamaModel

from modules import Baseline, CheckpointError, LoRA, StartError
from modules.backbone import (
    load_backbone,
    model_type,
    published_name,
    quantization,
    resolve_backbone,
    resolve_tokenizer,
)
from modules.errors import BackboneError

IDS = torch.tensor([[3, 7, 40, 9, 2], [5, 6, 30, 31, 2]])


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """Make an empty cache for each test."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    resolve_backbone.cache_clear()
    yield tmp_path / "home"
    resolve_backbone.cache_clear()


@pytest.fixture
def models(tiny_qwen, tmp_path) -> dict[str, Path]:
    """Return a tiny Qwen2 and a tiny Llama with the same tokenizer."""
    llama = tmp_path / "tiny-llama"
    shutil.copytree(tiny_qwen, llama)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vocabulary = json.loads((llama / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    LlamaModel(LlamaConfig(vocab_size=vocabulary, num_key_value_heads=2, **sizes)).save_pretrained(llama)
    return {"qwen2": Path(tiny_qwen), "llama": llama}


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_vectors_equal_those_of_the_de_quantized_weights_as_a_folder(kind, models, file):
    expected = write_gguf(models[kind], file)
    ours, theirs = (load_backbone(str(path)).eval() for path in (file, expected))
    assert model_type(str(file)) == kind
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == {
        name: tensor.shape for name, tensor in theirs.state_dict().items()
    }
    with torch.no_grad():
        vectors, whole = (model(input_ids=IDS).last_hidden_state for model in (ours, theirs))
        unquantized = load_backbone(str(models[kind])).eval()(input_ids=IDS).last_hidden_state
    assert torch.equal(vectors, whole)
    assert not torch.allclose(vectors, unquantized, atol=1e-3)  # the file's weights, not those it was made of


def test_the_tokenizer_is_that_of_the_file(models, file):
    write_gguf(models["qwen2"], file)
    ours = AutoTokenizer.from_pretrained(resolve_tokenizer(str(file)))
    original = AutoTokenizer.from_pretrained(models["qwen2"])
    for text in ("compute a new graph from 123 nodes", "Größe, naïve <|endoftext|> x\n\ty"):
        assert ours(text)["input_ids"] == original(text)["input_ids"]
    assert ours.model_max_length == 256
    assert ours.eos_token == "<|endoftext|>"


def test_a_file_is_found_by_a_relative_path_and_from_the_home_folder(models, file, monkeypatch):
    write_gguf(models["qwen2"], file)
    monkeypatch.chdir(file.parent)
    monkeypatch.setenv("HOME", str(file.parent))
    folders = {resolve_backbone(name) for name in (str(file), "model.gguf", "./model.gguf", "~/model.gguf")}
    assert len(folders) == 1
    assert published_name("~/model.gguf") == str(file.resolve())


def test_neighbours_of_the_file_are_not_read(models, file):
    """transformers prefers a folder's `tokenizer.json` and adapter to the file that it was given."""
    write_gguf(models["qwen2"], file)
    (file.parent / "tokenizer.json").write_text("{")
    (file.parent / "adapter_config.json").write_text("{")
    assert len(AutoTokenizer.from_pretrained(resolve_tokenizer(str(file)))) == 318
    assert Path(resolve_backbone(str(file)), "config.json").is_file()


def test_the_types_of_the_weights_are_named_by_their_share(models, file, tiny_qwen):
    write_gguf(models["llama"], file)
    # of 28,768 weights, 10,176 are embeddings, 1,024 values of attention, 160 norms
    assert quantization(str(file)) == "Q4_0 60.5 %, Q8_0 35.4 %, F16 3.56 %, F32 0.556 %"
    assert quantization(tiny_qwen) is None


def test_a_file_is_de_quantized_once(models, file, home, monkeypatch):
    write_gguf(models["qwen2"], file)
    (home / "dequantized").mkdir(parents=True)
    first = Path(resolve_backbone(str(file)))
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    monkeypatch.setitem(sys.modules, "gguf", None)  # nor is the package needed again
    resolve_backbone.cache_clear()
    assert Path(resolve_backbone(str(file))) == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before


def test_what_a_killed_process_left_is_not_taken_for_a_model(models, file):
    write_gguf(models["qwen2"], file)
    folder = Path(resolve_backbone(str(file)))
    folder.rename(folder.with_name("weights.unfinished"))
    (folder.with_name("weights.unfinished") / "config.json").write_text("{")
    resolve_backbone.cache_clear()
    assert model_type(str(file)) == "qwen2"
    assert not folder.with_name("weights.unfinished").exists()


def test_another_file_under_the_same_name_is_another_backbone(models, file):
    write_gguf(models["qwen2"], file)
    first = Baseline(backbone=str(file)).backbone_fingerprint
    shutil.rmtree(f"{file}.expected")
    write_gguf(models["llama"], file)
    resolve_backbone.cache_clear()
    assert Baseline(backbone=str(file)).backbone_fingerprint != first


def refusal(file: Path) -> str:
    with pytest.raises(BackboneError) as refused:
        load_backbone(str(file))
    assert not list(Path(constants.HF_HOME).rglob("*.safetensors"))
    return str(refused.value)


def test_a_missing_extra_is_named(models, file, monkeypatch):
    write_gguf(models["qwen2"], file)
    monkeypatch.setattr("modules.gguf.NEEDED", ("no_such_package",))
    message = refusal(file)
    assert "but the package no_such_package is not installed" in message
    assert "'.[gguf]'" in message


def test_a_file_that_is_not_there_and_one_that_is_not_gguf_are_refused(file, models):
    assert "model.gguf does not exist. Check its path." in refusal(file)
    assert "is a file, but not a GGUF file" in refusal(models["qwen2"] / "model.safetensors")
    file.write_bytes(b"")
    assert "is a file, but not a GGUF file" in refusal(file)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9])
def test_a_file_that_is_cut_off_is_refused(share, models, file):
    write_gguf(models["qwen2"], file)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content)) + 4])
    assert "is damaged or cut off" in refusal(file)


def test_an_architecture_that_transformers_cannot_read_is_refused_by_name(models, file):
    write_gguf(models["qwen2"], file, architecture="rwkv7")
    message = refusal(file)
    assert "of architecture 'rwkv7'" in message
    assert "not supported yet" in message


def test_a_weight_that_is_missing_is_not_left_random(models, file):
    write_gguf(models["qwen2"], file, keep=lambda name: name != "blk.1.ffn_up.weight")
    assert "lack layers.1.mlp.up_proj.weight, which would be random" in refusal(file)


def test_the_head_of_a_language_model_is_left_out(models, file):
    vocabulary = json.loads((models["qwen2"] / "config.json").read_text())["vocab_size"]
    write_gguf(models["qwen2"], file, more={"output.weight": np.ones((vocabulary, 32), np.float32)})
    assert not [name for name in load_backbone(str(file)).state_dict() if "head" in name]


def test_weights_that_transformers_would_leave_out_are_refused(models, file):
    write_gguf(models["llama"], file, more={"rope_freqs.weight": np.ones(4, np.float32)})
    assert "does not read its scaling of rotary positions" in refusal(file)
    shutil.rmtree(f"{file}.expected")
    write_gguf(models["llama"], file, more={"blk.0.attn_q.bias": np.ones(32, np.float32)})
    assert "it has 28,800 weights, of which transformers reads 28,768" in refusal(file)


def test_a_file_without_a_tokenizer_needs_another(models, file):
    write_gguf(models["qwen2"], file, tokenizer=False)
    assert load_backbone(str(file))
    with pytest.raises(BackboneError, match=r"cannot read the tokenizer of .*--tokenizer"):
        resolve_tokenizer(str(file))


def test_a_cache_that_cannot_be_written_is_named(models, file, tmp_path):
    write_gguf(models["qwen2"], file)
    (tmp_path / "home").write_text("a file")
    assert "set HF_HOME to another folder" in refusal(file)


def test_heads_and_checkpoints_are_refused_with_another_tokenizer(tiny_qwen, docstrings, trainer, tmp_path):
    fit = trainer(max_epochs=1)
    fit.fit(Baseline(backbone=tiny_qwen, num_labels=7), docstrings())
    fit.save_checkpoint(tmp_path / "last.ckpt")
    other = tmp_path / "other"
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen)
    tokenizer.add_tokens(["return"])
    tokenizer.save_pretrained(other)
    data, start = docstrings(tokenizer=str(other)), str(tmp_path / "start.safetensors")
    with pytest.raises(CheckpointError, match="was made with tokenizer"):
        trainer().validate(Baseline(tiny_qwen, 7), datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    with pytest.raises(StartError, match="was made with another tokenizer"):
        trainer().fit(LoRA(backbone=tiny_qwen, num_labels=7, start=start), datamodule=data)
