import pytest
import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from modules import FullFineTuning, LoRA
from modules.arithmetic import CpuAutocast

AUTOCAST = torch.autocast("cpu", torch.bfloat16)


class Watch(TorchFunctionMode):
    """Keeps the types of what products and attention are given; autocast casts out of its sight."""

    def __init__(self):
        super().__init__()
        self.types = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (linear, scaled_dot_product_attention):
            self.types.append((func, args[1].dtype))
        return func(*args, **kwargs or {})

    def of(self, function):
        return {kind for called, kind in self.types if called is function}


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(64, 32)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("unchanged", [True, False])
def test_products_and_their_gradients_equal_autocasts_to_the_bit(layer, trained, unchanged):
    layer.weight.requires_grad_(trained)
    vectors = torch.randn(8, 64)
    results = []
    for mode in (None, CpuAutocast()):
        inputs = vectors.clone().requires_grad_()
        layer.zero_grad()
        with AUTOCAST:
            if mode is None:
                output = layer(inputs)
            elif unchanged:
                with mode.unchanged(), mode:
                    output = layer(inputs)
            else:
                with mode:
                    output = layer(inputs)
        output.float().square().sum().backward()
        grads = [inputs.grad, layer.bias.grad, *([layer.weight.grad.clone()] if trained else [])]
        results.append([output, *grads])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_a_copy_is_made_once_and_again_when_the_weight_has_changed(layer):
    mode, vectors, watch = CpuAutocast(), torch.randn(8, 64), Watch()
    layer.weight.requires_grad_(False)
    copies = []
    for change in (False, False, True, False):
        with torch.no_grad():
            if change:
                layer.weight[0] = 0.0
            with AUTOCAST, watch, mode:
                output = layer(vectors)
            copies.append(mode._copies[id(layer.weight)][2])
            with AUTOCAST:
                assert torch.equal(output, layer(vectors))
    assert copies[0] is copies[1] is not copies[2] is copies[3]
    assert watch.of(linear) == {torch.bfloat16}


def test_a_weight_that_trains_has_no_copy_that_may_grow_old(layer):
    mode = CpuAutocast()
    with AUTOCAST, mode:
        layer(torch.randn(2, 64))
    with AUTOCAST, mode, torch.no_grad():
        layer(torch.randn(2, 64))
    assert not mode._copies
    mode.keep()
    with AUTOCAST, mode, torch.no_grad():
        layer(torch.randn(2, 64))
    assert mode._copies
    mode.release()
    assert not mode._copies


def test_evaluations_between_steps_of_a_fused_optimizer_see_its_weights(tiny_qwen, docstrings, trainer):
    seen = []

    class Watched(FullFineTuning):
        def on_validation_batch_end(self, outputs, batch, *_):
            own, self.arithmetic = self.arithmetic, CpuAutocast()
            with AUTOCAST:
                fresh = self(batch["input_ids"], batch["attention_mask"])
            self.arithmetic = own
            seen.append(bool(own._copies) and torch.equal(outputs["logits"], fresh))

    module = Watched(backbone=tiny_qwen, num_labels=7, learning_rate=1e-2)
    trainer(max_epochs=2, precision="bf16-mixed").fit(module, datamodule=docstrings())
    assert len(seen) > 1
    assert all(seen)


def test_a_copy_that_an_evaluation_made_serves_training(layer):
    layer.weight.requires_grad_(False)
    mode = CpuAutocast()
    with torch.inference_mode(), AUTOCAST, mode:
        layer(torch.randn(2, 64))
    inputs = torch.randn(2, 64, requires_grad=True)
    with AUTOCAST, mode:
        layer(inputs).float().sum().backward()
    assert inputs.grad is not None
    mode.release()
    assert mode._copies


@pytest.mark.parametrize("arm", [FullFineTuning, LoRA])
def test_attention_is_in_float32_and_gradients_are_those_of_autocast_but_for_rounding(arm, tiny_qwen):
    model = arm(backbone=tiny_qwen)
    nn.init.normal_(model.head.weight)
    batch = {"input_ids": torch.randint(2, 60, (4, 9)), "attention_mask": torch.ones(4, 9, dtype=torch.long)}
    norms, logits = [], []
    for compiled in (True, False):  # layers that are compiled are left to autocast alone
        model.compiled = compiled
        model.zero_grad()
        watch = Watch()
        with AUTOCAST, watch:
            output = model(**batch)
        assert compiled or watch.of(scaled_dot_product_attention) == {torch.float32}
        output.square().sum().backward()
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        logits.append(output.detach())
    torch.testing.assert_close(*logits, rtol=0.05, atol=0.02)
    assert torch.nn.functional.cosine_similarity(*norms, dim=0) > 0.999


def test_without_autocast_nothing_is_rounded(tiny_qwen):
    model = FullFineTuning(backbone=tiny_qwen)
    watch = Watch()
    with watch:
        model(torch.randint(2, 60, (2, 5)), torch.ones(2, 5, dtype=torch.long))
    assert watch.of(linear) == {torch.float32}
