"""The gradient pass: one gradient whatever the micro-batches, and nothing left behind."""

import math
import random

import pytest
import torch
from models import Classifier, dataset, loader, quadratic, weights_of
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from influence_masking import MaskingError, take_snapshot
from influence_masking.gradients import mean_gradient as gradients
from influence_masking.gradients.batches import CalibrationBatch
from influence_masking.gradients.mean_gradient import Calibration, calibrating, mean_gradient


def cross_entropy(module: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    inputs, labels = batch
    return nn.functional.cross_entropy(module.net(inputs.to(module.net[0].weight.dtype)), labels)


def snapshot_of(module: nn.Module, **options):
    batch_size = options.pop("batch_size", 16)
    return take_snapshot(module, loader(90, batch_size), cross_entropy, targets=["0", "3"], **options)


def test_gradient_is_that_of_the_mean_loss_over_all_samples() -> None:
    module = Classifier().double()
    snapshot = snapshot_of(module)
    inputs, labels = dataset(90).tensors
    loss = cross_entropy(module.eval(), [inputs, labels])
    expected = torch.autograd.grad(loss, module.net[0].weight)[0]
    assert snapshot.loss == pytest.approx(loss.item(), rel=1e-12)
    assert torch.allclose(snapshot.gradient.grads["net.0.weight"], expected, rtol=1e-12, atol=1e-15)


def test_the_score_of_a_model_of_three_weights_is_the_one_worked_by_hand() -> None:
    # loss 1/2 (theta x - y)^2 with theta = (1, -2, 3): the residual of x = (1, 1, 0), y = 1 is -2, that of
    # x = (0, 2, 1), y = 0 is -1; the gradient is the mean of -2 (1, 1, 0) and -1 (0, 2, 1)
    module = quadratic(torch.tensor([[1.0, -2.0, 3.0]]))
    x, y = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0]]), torch.tensor([1.0, 0.0])

    def loss(m: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return 0.5 * (batch[0] @ m.weight[0] - batch[1]).square().mean()

    snapshot = take_snapshot(module, [[x, y]], loss, targets="weight", micro_batch_size=1)
    assert snapshot.loss == (0.5 * 4 + 0.5 * 1) / 2
    assert snapshot.gradient.grads["weight"].tolist() == [[-1.0, -2.0, -0.5]]
    # sign(theta) * gradient = (-1, 2, -0.5); theta * gradient = (-1, 4, -1.5)
    assert snapshot.sample_scores().unique().tolist() == [-1.0, -0.5, 2.0]
    assert snapshot.select(1).flags("weight").tolist() == [[True, False, False]]
    assert snapshot.select(1, tail="highest").flags("weight").tolist() == [[False, True, False]]
    assert snapshot.select(1, "taylor").flags("weight").tolist() == [[False, False, True]]
    assert snapshot.predicted_change(snapshot.select(2)) == 1.0 + 1.5
    # without the first and third weight the residuals are -3 and -4
    assert snapshot.measured_change(snapshot.select(2)) == (0.5 * 9 + 0.5 * 16) / 2 - 1.25


def test_no_more_than_one_candidate_has_a_gradient_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    module, alive = Classifier(), []
    add = gradients._Sums._add

    def watched(self: gradients._Sums, name: str, parameter: torch.Tensor) -> None:
        alive.append([n for n, p in module.named_parameters() if p.grad is not None])
        add(self, name, parameter)

    monkeypatch.setattr(gradients._Sums, "_add", watched)
    snapshot_of(module)
    assert {tuple(names) for names in alive} == {("net.0.weight",), ("net.3.weight",)}


@pytest.mark.parametrize("size", [1, 7, 32, 90])
def test_mask_in_float32_does_not_depend_on_the_micro_batch_size(size: int) -> None:
    expected = snapshot_of(Classifier())
    found = snapshot_of(Classifier(), batch_size=90, micro_batch_size=size)
    assert found.gradient.micro_batch_size == size
    for score in ("sign_gradient", "taylor", "snip"):
        assert found.select(64, score).digest == expected.select(64, score).digest
    # the model computes in float32, so the last bits may differ, and nothing more
    for name, grad in expected.gradient.grads.items():
        assert torch.allclose(found.gradient.grads[name], grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 7}, {"micro_batch_size": 4}, {"batch_size": 90}])
def test_mask_does_not_depend_on_the_micro_batch_size(options: dict) -> None:
    expected = snapshot_of(Classifier().double()).select(64)
    assert snapshot_of(Classifier().double(), **options).select(64).digest == expected.digest


def test_mask_does_not_depend_on_the_order_of_the_batches() -> None:
    batches = list(loader(90, 8))
    digests = set()
    for seed in range(5):
        random.Random(seed).shuffle(batches)
        snapshot = take_snapshot(Classifier(), batches, cross_entropy, targets=["0", "3"])
        digests.add((snapshot.select(64).digest, snapshot.loss))
    assert len(digests) == 1


def test_predicted_change_is_the_slope_of_the_loss_by_finite_differences() -> None:
    snapshot = snapshot_of(Classifier().double())
    for tail in ("lowest", "highest"):
        mask = snapshot.select(100, tail=tail)
        alpha = 1e-5
        slope = (snapshot.measured_loss(mask, alpha) - snapshot.measured_loss(mask, -alpha)) / (2 * alpha)
        assert snapshot.predicted_change(mask) == pytest.approx(slope, rel=1e-8)


def test_lowest_scores_are_the_weights_whose_removal_raises_the_loss() -> None:
    snapshot = snapshot_of(Classifier())
    lowest, highest = snapshot.select(10, tail="lowest"), snapshot.select(10, tail="highest")
    assert snapshot.predicted_change(lowest) > 0
    assert snapshot.measured_change(lowest) > 0
    assert snapshot.predicted_change(highest) < 0
    assert snapshot.measured_change(highest) < 0


def test_gradients_of_bfloat16_weights_are_summed_in_a_wider_type() -> None:
    # 1 + 2^-9 a sample: bfloat16 has 8 bits, so that a sum in it would stall
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(1, 1, dtype=torch.bfloat16))
    batches = [torch.full((1, 1), 1.0, dtype=torch.bfloat16)] * 1000 + [
        torch.full((1, 1), 2.0**-7, dtype=torch.bfloat16)
    ]
    snapshot = take_snapshot(module, batches, lambda m, batch: (m.weight * batch).sum(), targets="weight")
    assert snapshot.gradient.grads["weight"].item() == torch.tensor((1000 + 2.0**-7) / 1001).item()


def real_error_of_the_cpu_allocator() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no memory left"),
        real_error_of_the_cpu_allocator(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes."),
    ],
    ids=["CUDA", "CPU", "XLA"],
)
def test_running_out_of_memory_halves_the_micro_batch_and_begins_again(error: RuntimeError) -> None:
    sizes = []

    def hungry(module: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        sizes.append(len(batch[0]))
        if len(batch[0]) > 5:
            raise error
        return cross_entropy(module, batch)

    with pytest.warns(UserWarning, match="at most 4 samples"):
        snapshot = take_snapshot(Classifier().double(), loader(90, 16), hungry, targets=["0", "3"])
    assert sizes[:3] == [16, 8, 4]
    assert snapshot.gradient.num_samples == 90
    assert snapshot.select(64).digest == snapshot_of(Classifier().double()).select(64).digest


def test_memory_that_runs_out_within_the_backward_pass_leaves_no_gradient_to_be_counted_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = snapshot_of(Classifier().double()).gradient.grads
    add, calls = gradients._Sums._add, []

    def hungry(self: gradients._Sums, name: str, parameter: torch.Tensor) -> None:
        calls.append(name)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("no memory left for the sum")
        add(self, name, parameter)

    monkeypatch.setattr(gradients._Sums, "_add", hungry)
    with pytest.warns(UserWarning, match="at most 8 samples"):
        found = snapshot_of(Classifier().double()).gradient.grads
    assert all(torch.allclose(found[name], grad, rtol=1e-12, atol=1e-15) for name, grad in expected.items())


def test_another_error_of_the_loss_is_not_taken_for_a_lack_of_memory() -> None:
    tried = []

    def wrong(module: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        tried.append(len(batch[0]))
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        take_snapshot(Classifier(), loader(20), wrong, targets=["0", "3"])
    assert tried == [16]


def test_a_sample_that_does_not_fit_is_an_error_that_says_so() -> None:
    def starving(module: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory left")

    with pytest.raises(torch.OutOfMemoryError) as caught, pytest.warns(UserWarning, match="at most 1 samples"):
        take_snapshot(Classifier(), loader(4, 2), starving, targets=["0", "3"])
    assert "a single sample" in caught.value.__notes__[0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_an_error_that_names_the_parameter(value: float) -> None:
    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            grad = grad.clone()
            grad[0, 3] = value
            return grad

    def loss(module: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return Bad.apply(module.net[3].weight).sum() + cross_entropy(module, batch)

    with pytest.raises(MaskingError, match=r"gradient of net\.3\.weight is not finite: found 1 of 128"):
        take_snapshot(Classifier(), loader(20), loss, targets=["0", "3"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_an_error_that_names_a_parameter(value: float) -> None:
    module = Classifier()
    with torch.no_grad():
        module.net[0].weight[3, 4] = value
    with pytest.raises(MaskingError, match=r"gradient of net\.[03]\.weight is not finite: found \d+ of"):
        take_snapshot(module, loader(20), cross_entropy, targets=["0", "3"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error(value: float) -> None:
    with pytest.raises(MaskingError, match=f"mean loss of 20 samples is not finite: found {value}"):
        take_snapshot(Classifier(), loader(20), lambda m, b: cross_entropy(m, b) + value, targets=["0", "3"])


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda loss: loss.detach(), "a loss that depends on no candidate"),
        (lambda loss: loss.expand(3), r"found shape \(3,\)"),
    ],
)
def test_a_loss_without_a_gradient_or_of_many_numbers_is_an_error(spoil, found: str) -> None:
    with pytest.raises(MaskingError, match=found):
        take_snapshot(Classifier(), loader(20), lambda m, b: spoil(cross_entropy(m, b)), targets=["0", "3"])


def test_candidates_that_the_loss_does_not_depend_on_are_named_in_a_warning() -> None:
    module = Classifier()
    module.unused = nn.Linear(3, 3)
    with pytest.warns(UserWarning, match=r"1 of 3 candidates.*unused\.weight"):
        snapshot = take_snapshot(module, loader(20), cross_entropy, targets=["0", "3", "unused"])
    assert snapshot.gradient.grads["unused.weight"].eq(0).all()


def test_module_is_left_as_it_was_found() -> None:
    module = Classifier()
    module.norm, module.accuracy = nn.BatchNorm1d(16), MulticlassAccuracy(4)
    module.net[3].weight.requires_grad_(False)
    module.net[2].eval()
    module.net[0].bias.grad = torch.ones(32)
    before, state = weights_of(module), {n: b.clone() for n, b in module.named_buffers()}
    modes = [child.training for child in module.modules()]
    modes_inside = []

    def loss(m: Classifier, batch: list[torch.Tensor]) -> torch.Tensor:
        modes_inside.append(any(child.training for child in m.modules()))
        m.norm.running_mean += 1
        m.accuracy(m.net(batch[0]), batch[1])
        return cross_entropy(m, batch)

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    take_snapshot(module, loader(90, shuffle=True), loss, targets=["0", "3"])

    assert torch.equal(torch.rand(3), expected)
    assert not any(modes_inside)
    assert [child.training for child in module.modules()] == modes
    assert [p.requires_grad for p in module.parameters()][:4] == [True, True, False, True]
    assert [p.grad is not None for p in module.parameters()][:4] == [False, True, False, False]
    assert module.net[0].bias.grad.eq(1).all()
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())
    assert all(torch.equal(value, state[name]) for name, value in module.named_buffers())
    assert module.accuracy.update_count == 0
    assert not any(p._post_accumulate_grad_hooks for p in module.parameters())


def test_module_is_left_as_it_was_found_when_the_loss_fails() -> None:
    module = Classifier()
    with pytest.raises(ZeroDivisionError):
        take_snapshot(module, loader(20), lambda m, b: 1 / 0, targets=["0"])
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    assert not any(p._post_accumulate_grad_hooks for p in module.parameters())


def test_only_candidates_get_a_gradient() -> None:
    module = Classifier()
    seen = []
    candidates = {"net.3.weight": module.net[3].weight}

    def loss(batch: CalibrationBatch) -> torch.Tensor:
        seen.append([p.requires_grad for p in module.parameters()])
        return cross_entropy(module, batch.data)

    with calibrating(module, candidates):
        mean_gradient(candidates, Calibration([CalibrationBatch(next(iter(loader(20, 20))), 0, 20)], loss))
    assert seen == [[False, False, True, False]]
