"""Held weights are bit for bit what they were, under every optimizer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import Classifier, loader, quiet_trainer, weights_of
from torch import nn

from influence_masking import Hold, InfluenceMasking, Mask, MaskingError, holding

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD with momentum and decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "AdamW with decay": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, weight_decay=0.1),
}
ACTIONS = ("zero", "freeze", "train_only")


class Trained(Classifier):
    """The classifier under an optimizer of the test's choice."""

    def __init__(self, make: Callable[[Any], torch.optim.Optimizer] = OPTIMIZERS["AdamW with decay"]) -> None:
        super().__init__()
        self.make = make

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make(self.parameters())


def assert_held(module: nn.Module, before: dict[str, torch.Tensor], callback: InfluenceMasking) -> None:
    """Compares bits of held weights, and sees that the others moved."""
    for name, parameter in module.named_parameters():
        selected = callback.mask.flags(name) if name in callback.mask.shapes else torch.zeros(parameter.shape) > 0
        held = ~selected if callback.action == "train_only" else selected
        expected = torch.zeros_like(before[name]) if callback.action == "zero" else before[name]
        bits, expected_bits = (t.detach().view(torch.int32) for t in (parameter, expected))
        assert torch.equal(bits[held], expected_bits[held]), name
        assert held.all() or not torch.equal(bits[~held], before[name].view(torch.int32)[~held]), name


def train(module: Classifier, action: str, fraction: float = 0.1, **options: Any) -> InfluenceMasking:
    callback = InfluenceMasking(fraction, targets=["0", "3"], num_samples=90, action=action)
    before = weights_of(module)
    quiet_trainer(callback, max_epochs=4, **options).fit(module, loader(100))
    assert_held(module, before, callback)
    return callback


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("action", ACTIONS)
def test_weights_are_held_under(name: str, action: str) -> None:
    train(Trained(OPTIMIZERS[name]), action)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("fraction", [0.1, 0.7])
@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_weights_are_held_with(options: dict[str, Any], fraction: float, action: str) -> None:
    train(Trained(), action, fraction, **options)


@pytest.mark.parametrize("action", ACTIONS)
def test_weights_are_held_in_a_compiled_module(action: str) -> None:
    class Silent(Trained):  # Dynamo cannot trace Lightning's `log`
        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    module = Silent()
    callback = InfluenceMasking(0.1, targets=["0", "3"], num_samples=90, action=action)
    before = weights_of(module)
    quiet_trainer(callback).fit(torch.compile(module, backend="aot_eager"), loader(100))
    assert_held(module, before, callback)
    plain = InfluenceMasking(0.1, targets=["0", "3"], num_samples=90, action=action)
    quiet_trainer(plain, max_epochs=0).fit(Trained(), loader(100))
    assert callback.mask.digest == plain.mask.digest


def test_weights_are_held_under_bfloat16_weights() -> None:
    module = Trained()
    callback = InfluenceMasking(0.1, targets=["0", "3"], num_samples=90, action="freeze")
    before = {name: value.bfloat16() for name, value in weights_of(module).items()}
    quiet_trainer(callback, precision="bf16-true").fit(module, loader(100))
    for name in callback.mask.shapes:
        flags = callback.mask.flags(name)
        assert torch.equal(dict(module.named_parameters())[name].bfloat16()[flags], before[name][flags])


def test_weights_without_a_hold_drift() -> None:
    module = Trained(OPTIMIZERS["SGD with momentum and decay"])
    before = weights_of(module)
    mask = Mask.from_flags({"net.0.weight": torch.rand(32, 16) < 0.2})

    def clear(parameter: torch.Tensor) -> None:
        parameter.grad.masked_fill_(mask.flags("net.0.weight"), 0)

    module.net[0].weight.register_post_accumulate_grad_hook(clear)
    quiet_trainer().fit(module, loader(100))
    flags = mask.flags("net.0.weight")
    assert (module.net[0].weight[flags] - before["net.0.weight"][flags]).abs().max() > 1e-3


def test_clipping_sees_no_gradient_of_held_weights() -> None:
    norms = []

    class Watched(Trained):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
            norms.append(self.trainer.callbacks[0]._hold.gradient_norm())
            norms.append(self.net[0].weight.grad[~self.trainer.callbacks[0].mask.flags("net.0.weight")].norm().item())

    train(Watched(), "freeze")
    assert set(norms[::2]) == {0.0}
    assert min(norms[1::2]) > 0


def test_a_parameter_that_is_unfrozen_later_is_held_too() -> None:
    class Thawing(Trained):
        def on_train_epoch_start(self) -> None:
            self.net[0].weight.requires_grad_(self.current_epoch > 0)

    module = Thawing()
    module.net[0].weight.requires_grad_(False)
    train(module, "freeze")


def test_tied_weights_are_held_under_both_names() -> None:
    class Tied(Trained):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4))
            self.net[2].weight = self.net[0].weight

    module = Tied()
    callback = InfluenceMasking(0.2, targets=["2", "3"], num_samples=90)
    quiet_trainer(callback).fit(module, loader(100))
    assert list(callback.mask.shapes) == ["net.0.weight", "net.3.weight"]
    assert callback.num_masked == int(0.2 * (256 + 64))
    assert module.net[2].weight is module.net[0].weight
    assert module.net[2].weight[callback.mask.flags("net.0.weight")].eq(0).all()


def test_peft_trains_its_adapters_over_a_masked_frozen_base() -> None:
    peft = pytest.importorskip("peft")

    class Adapted(Trained):
        def __init__(self) -> None:
            super().__init__()
            config = peft.LoraConfig(r=2, target_modules=["0", "3"])
            self.net = peft.get_peft_model(self.net, config)

    module = Adapted()
    before = weights_of(module)
    callback = InfluenceMasking(0.2, targets=["0", "3"], num_samples=90)
    quiet_trainer(callback).fit(module, loader(100))
    for name, parameter in module.named_parameters():
        if name in callback.mask.shapes:
            assert torch.equal(parameter, before[name].masked_fill(callback.mask.flags(name), 0))
            assert not parameter.requires_grad
        else:
            assert torch.equal(parameter, before[name]) == ("lora" not in name)


def test_several_callbacks_hold_their_masks_together() -> None:
    module = Trained()
    before = weights_of(module)
    zeroing = InfluenceMasking(0.1, targets=["0"], num_samples=90)
    freezing = InfluenceMasking(0.1, targets=["3"], num_samples=90, action="freeze")
    quiet_trainer(zeroing, freezing).fit(module, loader(100))
    assert module.net[0].weight[zeroing.mask.flags("net.0.weight")].eq(0).all()
    flags = freezing.mask.flags("net.3.weight")
    assert torch.equal(module.net[3].weight[flags], before["net.3.weight"][flags])


@pytest.mark.parametrize("threshold", [0.0, 2.0], ids=["by flag", "by index"])
@pytest.mark.parametrize("action", ACTIONS)
def test_holding_without_a_trainer(action: str, threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "DENSE_FROM", threshold)
    module = nn.Linear(8, 8, bias=False)
    before = module.weight.detach().clone()
    flags = torch.rand(8, 8) < 0.4
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    hold = Hold(module, Mask.from_flags({"weight": flags}), action, [optimizer])
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.randn(4, 8)).pow(2).sum().backward()
        assert hold.gradient_norm() == 0
        optimizer.step()
    held = ~flags if action == "train_only" else flags
    assert torch.equal(module.weight[held], before[held] * (action != "zero"))
    hold.release()
    module(torch.randn(4, 8)).pow(2).sum().backward()
    optimizer.step()
    assert not torch.equal(module.weight[held], before[held] * (action != "zero"))


def test_a_mask_of_another_model_is_not_held() -> None:
    with pytest.raises(MaskingError, match="weight of shape"):
        Hold(nn.Linear(2, 2), Mask.from_flags({"weight": torch.zeros(3, 3) > 0}), "zero")
