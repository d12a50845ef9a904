"""What a backbone cannot read is found before an epoch, a feature or a gradient, and the look changes nothing."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    EsmModel,
    Gemma3Config,
    Gemma3Model,
    GPT2Config,
    GPT2Model,
    MPNetModel,
    MptConfig,
    MptModel,
    OPTConfig,
    OPTModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    RobertaConfig,
    RobertaModel,
)

from datamodules import DataError, Docstrings
from modules import BackboneError, Baseline, Caches, FullFineTuning, Influence, LoRA, OptionError, first_look

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GEMMA3 = {"text_config": {**SIZES, "vocab_size": 320}, "vision_config": SIZES | {"image_size": 28, "patch_size": 14}}


def qwen2(vocab_size: int = 320, value: float | None = None, **options: object) -> Qwen2Model:
    """Make a tiny Qwen2, with one weight of the last layer as given."""
    torch.manual_seed(0)
    model = Qwen2Model(Qwen2Config(vocab_size=vocab_size, num_key_value_heads=2, **(SIZES | options)))
    if value is not None:
        model.layers[-1].mlp.up_proj.weight.data[3, 3] = value
    return model


def unbounded() -> Qwen2Model:
    """Finite weights whose products are beyond the range of 16 bits."""
    model = qwen2()
    model.norm.weight.data.fill_(6e4)
    return model


@pytest.fixture
def saved(tiny_qwen: str, tmp_path: Path) -> Callable[..., str]:
    """Save a model with the tokenizer of the tiny Qwen2; return the folder."""

    def save(model: nn.Module) -> str:
        folder = tmp_path / "backbone"
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(tiny_qwen) / name, folder)
        return str(folder)

    return save


@pytest.fixture
def fit(trainer, data_cache, monkeypatch) -> Callable[..., None]:
    """Fits an arm on docstrings; fails if an epoch, a feature or a gradient is begun."""

    def run(kind: type, backbone: str, max_length: int = 64, precision: str = "32-true") -> None:
        sizes = {f"{split}_size": 50 for split in ("head_init", "train", "dev", "eval")}
        data = Docstrings(tokenizer=backbone, cache_dir=data_cache, max_length=max_length, **sizes)
        module = kind(backbone=backbone, num_labels=7)
        for name in ("_extract", "on_train_epoch_start"):
            monkeypatch.setattr(module, name, lambda *_: pytest.fail("something expensive was begun"))
        monkeypatch.setattr(
            "influence_masking.gradients.mean_gradient.mean_gradient", lambda *_: pytest.fail("a gradient")
        )
        trainer(max_epochs=1, precision=precision).fit(module, datamodule=data)

    return run


FAULTS = {
    "a token beyond the embedding": (lambda: qwen2(vocab_size=100), {}, BackboneError, "has 100 rows. Give a backbone"),
    "a length beyond the positions": (
        lambda: GPT2Model(GPT2Config(vocab_size=320, n_positions=32, n_embd=32, n_layer=2, n_head=4)),
        {},
        OptionError,
        "data.max_length is 64, but the backbone {} reads at most 32 tokens",
    ),
    "a length beyond the positions of a rotary model": (
        lambda: qwen2(max_position_embeddings=32),
        {},
        OptionError,
        "reads at most 32 tokens. Lower data.max_length.",
    ),
    "a length beyond the positions that begin behind the padding": (
        lambda: RobertaModel(RobertaConfig(vocab_size=320, max_position_embeddings=65, pad_token_id=1, **SIZES)),
        {},
        OptionError,
        "reads at most 63 tokens. Lower data.max_length.",
    ),
    "a length beyond a buffer": (
        lambda: MptModel(MptConfig(vocab_size=320, d_model=32, n_heads=4, n_layers=2, max_seq_len=32)),
        {},
        BackboneError,
        "fails on a batch of 1 x 64 tokens (RuntimeError: ",
    ),
    "NaN": (lambda: qwen2(value=float("nan")), {}, BackboneError, "values in layers.1.mlp.up_proj.weight that are NaN"),
    "infinity": (lambda: qwen2(value=-float("inf")), {}, BackboneError, "layers.1.mlp.up_proj.weight that are NaN or"),
    "a range that is too small": (
        unbounded,
        {"precision": "16-true"},
        BackboneError,
        "gives logits that are NaN or infinite under trainer.precision 16-true",
    ),
    "nested text configurations": (
        lambda: Gemma3Model(Gemma3Config(**GEMMA3)),
        {},
        BackboneError,
        "its configuration has no hidden_size, as it is made of several models",
    ),
}


@pytest.mark.parametrize("kind", [Baseline, LoRA, FullFineTuning])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_error_before_anything_expensive(fault, kind, saved, fit):
    make, options, error, message = FAULTS[fault]
    folder = saved(make())
    with pytest.raises(error, match=re.escape(message.format(repr(folder)))) as refused:
        fit(kind, folder, **options)
    assert folder in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [Influence, LoRA])
def test_a_model_without_linear_layers_is_refused_when_its_arm_is_built(kind, saved):
    with pytest.raises(BackboneError, match="cannot be told from others: it has no blocks"):
        kind(backbone=saved(qwen2(num_hidden_layers=0)))


@pytest.mark.parametrize("kind", [RobertaModel, MPNetModel, EsmModel])
def test_all_positions_that_a_backbone_has_are_read_and_no_more(kind, saved, fit):
    config = kind.config_class(vocab_size=320, max_position_embeddings=66, pad_token_id=1, **SIZES)
    with pytest.raises(pytest.fail.Exception, match="something expensive"):  # the look has found no fault
        fit(Baseline, saved(kind(config)), max_length=64)
    with pytest.raises(OptionError, match=r"data\.max_length is 65, but .* reads at most 64 tokens"):
        fit(Baseline, saved(kind(config)), max_length=65)


def words_without(*special: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer of words, with these special tokens, each of which is named like its string."""
    vocabulary = {"[UNK]": 0, "a": 1, "array": 2, **{f"[{name.upper()}]": 3 + n for n, name in enumerate(special)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {f"{name}_token": f"[{name.upper()}]" for name in special}
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", **tokens)


@pytest.mark.parametrize(("special", "rows"), [((), None), (("pad",), 3), (("eos",), 3)])
def test_a_pad_token_that_is_missing_or_beyond_the_embedding_is_an_error(special, rows, tmp_path, fit):
    tokenizer = words_without(*special)
    BertModel(BertConfig(vocab_size=rows or len(tokenizer), **SIZES)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").unlink(missing_ok=True)
    if special:
        with pytest.raises(BackboneError, match=r"gives the token 3, as padding or in a text, but .* has 3 rows"):
            fit(Baseline, str(tmp_path))
    else:
        with pytest.raises(DataError, match="has neither a pad token nor an eos token"):
            fit(Baseline, str(tmp_path))


@pytest.mark.parametrize("kind", [Baseline, LoRA, FullFineTuning])
def test_a_projected_embedding_is_read(kind, saved, tiny_qwen, trainer, docstrings):
    config = OPTConfig(
        vocab_size=320, word_embed_proj_dim=16, ffn_dim=64, do_layer_norm_before=False, **SIZES | {"dropout": 0.0}
    )
    module = kind(backbone=saved(OPTModel(config)), num_labels=7)
    trainer(max_epochs=1).fit(module, datamodule=docstrings())
    assert module.head.weight.shape == (7, 16)


def state_of(module: nn.Module) -> dict[str, object]:
    """Everything that a look could change."""
    numpy_state = np.random.get_state()
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
        "python": random.getstate(),
        "weights": {name: value.tolist() for name, value in module.state_dict().items()},
        "buffers": {name: value.tolist() for name, value in module.named_buffers()},
        "gradients": {name: None if p.grad is None else p.grad.tolist() for name, p in module.named_parameters()},
        "trains": {name: p.requires_grad for name, p in module.named_parameters()},
        "modes": {name: each.training for name, each in module.named_modules()},
        "hooks": {name: len(each._forward_pre_hooks) for name, each in module.named_modules()},
    }


@pytest.mark.parametrize("kind", [Baseline, Influence, LoRA, FullFineTuning])
def test_a_look_leaves_everything_as_it_was(kind, saved, docstrings, trainer, monkeypatch, with_head):
    module = with_head(kind(backbone=saved(qwen2(attention_dropout=0.5)), num_labels=7))
    looked, look = [], first_look.look

    def watched(*args: object) -> None:
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        before = state_of(module)
        look(*args)
        looked.append(state_of(module) == before)
        module.zero_grad()

    monkeypatch.setattr(first_look, "look", watched)
    trainer(max_epochs=1).fit(module, datamodule=docstrings())
    assert looked == [True]
    assert len(module.caches.looks) == 2


@pytest.mark.parametrize("kind", [Baseline, Influence, LoRA, FullFineTuning])
def test_results_are_those_without_a_look_to_the_bit(kind, saved, docstrings, trainer, monkeypatch, with_head):
    folder, weights = saved(qwen2(attention_dropout=0.5)), []
    for look in (first_look.look, lambda trainer, module: None):
        monkeypatch.setattr(first_look, "look", look)
        torch.manual_seed(0)
        module = with_head(kind(backbone=folder, num_labels=7))
        trainer(max_epochs=2).fit(module, datamodule=docstrings())
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_what_was_looked_at_already_is_not_read_again(tiny_qwen, docstrings, trainer, monkeypatch, with_head):
    read, caches = [], Caches()
    monkeypatch.setattr(
        first_look, "_read", lambda *args: read.append((tuple(args[2]["input_ids"].shape), len(args[3])))
    )

    def fit(kind: type, **options: object) -> None:
        module = with_head(kind(backbone=tiny_qwen, num_labels=7))
        module.caches = caches
        trainer(max_epochs=1, **options).fit(module, datamodule=docstrings(max_length=64))

    for kind in (Baseline, Baseline, Influence, LoRA, FullFineTuning):
        fit(kind)
    one_row, two_rows = (1, 64), (2, 3)
    assert read == [(one_row, 0), (two_rows, 1), (two_rows, 0), (two_rows, 29), (two_rows, 27)]
    fit(Baseline, precision="bf16-mixed")
    assert read[5:] == [(one_row, 0), (two_rows, 1)]


@pytest.mark.parametrize(
    ("device", "looks"), [("xla", ["setup"]), ("cpu", ["on_fit_start"]), ("cuda", ["on_fit_start"])]
)
def test_a_look_is_on_the_device_but_for_xla_where_it_would_be_compiled(device, looks, monkeypatch):
    found = []
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    for hook, arguments in (("setup", ("fit",)), ("setup", ("validate",)), ("on_fit_start", ())):
        monkeypatch.setattr(first_look, "look", lambda *_, hook=hook: found.append(hook))
        getattr(first_look.FirstLook(), hook)(trainer, None, *arguments)
    assert found == looks


def test_too_little_memory_is_no_fault_of_the_backbone(tiny_qwen, fit, monkeypatch):
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Baseline, "forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        fit(Baseline, tiny_qwen)
