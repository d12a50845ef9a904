"""Held weights are bit for bit what they were, under every optimizer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from models import Classifier, loader, quiet_trainer, weights_of
from torch import nn

from influence_masking import InfluenceMasking, Mask, MaskEnforcer, MaskingError
from influence_masking.masks import enforcer as enforcer_module

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


class Outcome(NamedTuple):
    """What training did: how many held weights have other bits than they should, and which parameters stood still.

    A parameter stands still if it has weights that are not held and none of them moved.
    """

    broken: int
    still: list[str]


HELD = Outcome(0, [])


def outcome(module: nn.Module, before: dict[str, torch.Tensor], callback: InfluenceMasking) -> Outcome:
    broken, still = 0, []
    for name, parameter in module.named_parameters():
        selected = callback.mask.flags(name) if name in callback.mask.shapes else torch.zeros(parameter.shape) > 0
        held = ~selected if callback.options.action == "train_only" else selected
        was = before[name].to(parameter.dtype)
        expected = torch.zeros_like(was) if callback.options.action == "zero" else was
        integers = {2: torch.int16, 4: torch.int32}[was.element_size()]
        bits, was_bits, expected_bits = (t.detach().view(integers) for t in (parameter, was, expected))
        broken += int((bits != expected_bits)[held].sum())
        if not held.all() and torch.equal(bits[~held], was_bits[~held]):
            still.append(name)
    return Outcome(broken, still)


def train(module: Classifier, action: str, fraction: float = 0.1, **options: Any) -> tuple[InfluenceMasking, Outcome]:
    callback = InfluenceMasking(fraction, targets=["0", "3"], num_samples=90, action=action)
    before = weights_of(module)
    quiet_trainer(callback, max_epochs=4, **options).fit(module, loader(100))
    return callback, outcome(module, before, callback)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("action", ACTIONS)
def test_weights_are_held_under(name: str, action: str) -> None:
    callback, found = train(Trained(OPTIMIZERS[name]), action)
    assert callback.num_masked == 64
    assert found == HELD


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("fraction", [0.1, 0.7])
@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "16-true"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_weights_are_held_with(options: dict[str, Any], fraction: float, action: str) -> None:
    callback, found = train(Trained(), action, fraction, **options)
    assert callback.num_masked == int(fraction * 640)
    assert found == HELD


@pytest.mark.parametrize("action", ACTIONS)
def test_weights_are_held_in_a_compiled_module(action: str) -> None:
    class Silent(Trained):  # Dynamo cannot trace Lightning's `log`
        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    module = Silent()
    callback = InfluenceMasking(0.1, targets=["0", "3"], num_samples=90, action=action)
    before = weights_of(module)
    quiet_trainer(callback).fit(torch.compile(module, backend="aot_eager"), loader(100))
    assert outcome(module, before, callback) == HELD
    plain = InfluenceMasking(0.1, targets=["0", "3"], num_samples=90, action=action)
    quiet_trainer(plain, max_epochs=0).fit(Trained(), loader(100))
    assert callback.mask.digest == plain.mask.digest


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", ["SGD with momentum and decay", "AdamW with decay"])
@pytest.mark.parametrize("action", ACTIONS)
def test_weights_are_held_when_the_loss_of_a_float16_pass_is_scaled(action: str, name: str, clip: float | None) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=5)
    skipped = []

    class Watched(Trained):
        def on_train_batch_end(self, *_: Any) -> None:
            skipped.append(scaler.get_scale())

    precision = MixedPrecision("16-mixed", "cpu", scaler)
    callback, found = train(Watched(OPTIMIZERS[name]), action, plugins=precision, gradient_clip_val=clip)
    assert found == HELD
    assert min(skipped) < 2.0**20  # some steps overflowed and were skipped
    assert len(set(skipped)) > 2
    alone, _ = train(Trained(OPTIMIZERS[name]), action)
    # the gradient of the mask is taken in float32
    assert (callback.mask.digest, callback.loss_before) == (alone.mask.digest, alone.loss_before)


class ByHand(Trained):
    """Steps twice a batch, and notes after each step whether held weights are what they should be."""

    def __init__(self, own: bool) -> None:
        super().__init__(OPTIMIZERS["SGD with momentum and decay"])
        self.automatic_optimization, self.own = False, own
        self.before = weights_of(self)
        self.after_steps: list[int] = []
        self.after_batches: list[int] = []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        optimizer = self.mine if self.own else self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
        for _ in range(2):
            optimizer.step()
            if self.trainer.callbacks[0].mask:
                self.after_steps.append(outcome(self, self.before, self.trainer.callbacks[0]).broken)

    def on_train_batch_end(self, *_: Any) -> None:
        self.after_batches.append(outcome(self, self.before, self.trainer.callbacks[0]).broken)

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        self.mine = self.make(self.parameters())
        return None if self.own else self.mine


@pytest.mark.parametrize("action", ACTIONS)
def test_weights_are_held_from_one_step_to_the_next_within_a_batch(action: str) -> None:
    module = ByHand(own=False)
    train(module, action)
    assert len(module.after_steps) == 4 * 7 * 2
    assert set(module.after_steps) == {0}


def test_weights_of_an_optimizer_that_the_trainer_does_not_know_are_held_from_batch_to_batch() -> None:
    module = ByHand(own=True)
    train(module, "freeze")
    assert len(module.after_batches) == 4 * 7
    assert set(module.after_batches) == {0}
    assert max(module.after_steps) > 0


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
            norms.append(self.trainer.callbacks[0]._enforcer.gradient_norm().item())
            norms.append(self.net[0].weight.grad[~self.trainer.callbacks[0].mask.flags("net.0.weight")].norm().item())

    assert train(Watched(), "freeze")[1] == HELD
    assert set(norms[::2]) == {0.0}
    assert min(norms[1::2]) > 0


def test_a_parameter_that_is_unfrozen_later_is_held_too() -> None:
    class Thawing(Trained):
        def on_train_epoch_start(self) -> None:
            self.net[0].weight.requires_grad_(self.current_epoch > 0)

    module = Thawing()
    module.net[0].weight.requires_grad_(False)
    assert train(module, "freeze")[1] == HELD
    assert module.net[0].weight.requires_grad


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
    monkeypatch.setattr(enforcer_module, "DENSE_THRESHOLD", threshold)
    module = nn.Linear(8, 8, bias=False)
    before = module.weight.detach().clone()
    flags = torch.rand(8, 8) < 0.4
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
    enforcer = MaskEnforcer(module, Mask.from_flags({"weight": flags}), action, [optimizer])
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.randn(4, 8)).pow(2).sum().backward()
        assert enforcer.gradient_norm() == 0
        optimizer.step()
    held = ~flags if action == "train_only" else flags
    assert torch.equal(module.weight[held], before[held] * (action != "zero"))
    enforcer.release()
    module(torch.randn(4, 8)).pow(2).sum().backward()
    optimizer.step()
    assert not torch.equal(module.weight[held], before[held] * (action != "zero"))


def test_a_mask_of_another_model_is_not_held() -> None:
    with pytest.raises(MaskingError, match="weight of shape"):
        MaskEnforcer(nn.Linear(2, 2), Mask.from_flags({"weight": torch.zeros(3, 3) > 0}), "zero")
