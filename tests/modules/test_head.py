import pytest
import torch
from torch import nn

from modules import Baseline
from modules.head import ConditionedHead

VECTORS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 0.1, 1, 30, 170, 1])


def test_a_new_head_prefers_no_class():
    head = ConditionedHead(6, 3, bias=True)
    assert not head(VECTORS).any()


@pytest.mark.parametrize("bias", [True, False])
def test_the_features_that_the_weights_meet_have_a_root_mean_square_of_one(bias):
    head = ConditionedHead(6, 6, bias)
    head.condition(VECTORS)
    nn.init.eye_(head.weight)
    torch.testing.assert_close(head(VECTORS).square().mean(0), torch.ones(6))
    if bias:
        torch.testing.assert_close(head(VECTORS).mean(0), torch.zeros(6), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_the_folded_layer_gives_the_same_logits_to_the_bit(bias):
    head = ConditionedHead(6, 3, bias)
    head.condition(VECTORS)
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    layer = head.as_linear()
    assert type(layer) is nn.Linear
    assert torch.equal(layer(VECTORS), head(VECTORS))


def test_a_dimension_that_is_always_zero_keeps_its_weight_finite():
    head = ConditionedHead(3, 2, bias=False)
    head.condition(torch.tensor([[1.0, 0.0, 1e-9], [3.0, 0.0, 0.0]]))
    assert (head.scale > 0).all()
    head.condition(torch.zeros(4, 3))
    assert head.scale.tolist() == [1, 1, 1]


class Scaled(nn.Module):
    """A norm whose output is multiplied by a number: vectors of another size, with the same content."""

    def __init__(self, norm, factor):
        super().__init__()
        self.norm, self.factor = norm, factor

    def forward(self, states):
        return self.factor * self.norm(states)


@pytest.mark.parametrize("factor", [100, 0.01])
def test_the_size_of_a_backbones_vectors_does_not_change_its_head(factor, tiny_qwen, docstrings, trainer):
    found = []
    for size in (1, factor):
        module, outputs = Baseline(backbone=tiny_qwen, num_labels=7, learning_rate=3e-3), []
        module.backbone.norm = Scaled(module.backbone.norm, size)
        trainer(max_epochs=3).fit(module, datamodule=docstrings())
        module.eval()
        for batch in docstrings_batches(docstrings):
            with torch.no_grad():
                outputs.append(module(batch["input_ids"], batch["attention_mask"]))
        found.append(torch.cat(outputs))
    assert found[0].any()
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)
    assert torch.equal(found[1].argmax(1), found[0].argmax(1))


def docstrings_batches(docstrings):
    data = docstrings()
    data.setup()
    return data.ordered_dataloader("eval")


def test_every_process_would_find_the_same_constants(tiny_qwen, docstrings, trainer, monkeypatch):
    """Also where vectors are not kept: one process of several, or batches that are limited."""
    scales = []
    for limit in ({}, {"limit_train_batches": 2}):
        module = Baseline(backbone=tiny_qwen, num_labels=7)
        trainer(max_epochs=1, **limit).fit(module, datamodule=docstrings())
        scales.append(module.head.scale)
    assert torch.equal(*scales)


def test_a_resumed_fit_keeps_its_constants(tiny_qwen, docstrings, trainer, tmp_path):
    module = Baseline(backbone=tiny_qwen, num_labels=7)
    first = trainer(max_epochs=1)
    first.fit(module, datamodule=docstrings())
    first.save_checkpoint(tmp_path / "last.ckpt")
    resumed = Baseline(backbone=tiny_qwen, num_labels=7)
    trainer(max_epochs=2).fit(resumed, datamodule=docstrings(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    whole = Baseline(backbone=tiny_qwen, num_labels=7)
    trainer(max_epochs=2).fit(whole, datamodule=docstrings())
    assert torch.equal(resumed.head.scale, module.head.scale)
    assert torch.equal(resumed.head.scale, whole.head.scale)
