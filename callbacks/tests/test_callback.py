"""The callback in a Trainer's run: when it acts, what it leaves, what it refuses."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from models import QUIET, Classifier, Counting, dataset, loader, quiet_trainer, weights_of
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from influence_masking import InfluenceMasking, Mask, MaskingError
from influence_masking.gradients import loaders as calibration

TARGETS = ["0", "3"]


def masking(**options: Any) -> InfluenceMasking:
    return InfluenceMasking(**{"fraction": 0.1, "targets": TARGETS, "num_samples": 90} | options)


def hooks_of(module: nn.Module, trainer: Trainer | None = None) -> int:
    hooks = sum(len(p._post_accumulate_grad_hooks or {}) for p in module.parameters())
    return hooks + sum(len(o._optimizer_step_post_hooks) for o in (trainer.optimizers if trainer else []))


class Hooks(Callback):
    """Count hooks while the module trains."""

    def __init__(self) -> None:
        self.during: list[int] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.during.append(hooks_of(pl_module, trainer))


@pytest.mark.parametrize(("fraction", "k"), [(0.1, 64), (0.05, 32), (0.0999, 63), (0.9999, 639)])
def test_exactly_the_floor_of_the_fraction_is_masked(fraction: float, k: int) -> None:
    callback = masking(fraction=fraction)
    module = Classifier()
    quiet_trainer(callback, max_epochs=0).fit(module, loader())
    assert (callback.num_masked, callback.num_candidates) == (k, 640)
    assert sum(int((p == 0).sum()) for n, p in module.named_parameters() if n in callback.mask.shapes) == k


def test_a_count_is_taken_as_it_is() -> None:
    callback = masking(fraction=None, count=7)
    quiet_trainer(callback, max_epochs=0).fit(Classifier(), loader())
    assert callback.num_masked == 7


def test_everything_is_known_after_a_fit_without_a_step() -> None:
    callback, module = masking(), Classifier()
    before = weights_of(module)
    quiet_trainer(callback, max_epochs=0).fit(module, loader())
    assert all(
        torch.equal(p, before[n].masked_fill(callback.mask.flags(n), 0) if n in callback.mask.shapes else before[n])
        for n, p in module.named_parameters()
    )
    assert callback.measured_change == callback.loss_after - callback.loss_before
    assert set(callback.seconds) == {"gradient", "selection", "measure"}
    assert set(callback.state_dict()) == {
        "mask", "predicted_change", "measured_change", "loss_before", "loss_after", "seconds"
    }  # fmt: skip
    inputs, labels = (t[:90] for t in dataset().tensors)
    loss = nn.functional.cross_entropy(module.eval().net(inputs), labels).item()
    assert callback.loss_after == pytest.approx(loss, abs=1e-6)
    assert callback.mask.provenance["num_samples"] == 90
    assert callback.mask.provenance["score"] == "sign_gradient"


def test_the_same_mask_comes_out_twice_and_training_draws_the_same_numbers() -> None:
    def fit(callbacks: list) -> torch.Tensor:
        torch.manual_seed(3)
        quiet_trainer(*callbacks).fit(Classifier(), loader(shuffle=True))
        return torch.rand(4)

    one, other = masking(), masking()
    assert torch.equal(fit([one]), fit([other]))
    assert one.mask == other.mask
    assert one.state_dict()["measured_change"] == other.state_dict()["measured_change"]
    assert torch.equal(fit([masking()]), fit([]))


def test_a_loader_with_its_own_generator_finds_it_as_it_was() -> None:
    states = []
    for callbacks in ([masking()], []):
        generator = torch.Generator().manual_seed(5)
        quiet_trainer(*callbacks).fit(Classifier(), loader(shuffle=True, generator=generator))
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_fit_validate_and_fit_again_leave_no_hook_and_compute_once() -> None:
    callback, module, hooks = Counting(0.1, targets=TARGETS, num_samples=90), Classifier(), Hooks()
    trainer = quiet_trainer(callback, hooks)
    trainer.fit(module, loader(), loader())
    assert set(hooks.during) == {3}
    assert hooks_of(module, trainer) == 0
    computed, digest = callback.computed, callback.mask.digest
    trainer.validate(module, loader())
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, loader(), loader())
    assert hooks_of(module, trainer) == 0
    assert set(hooks.during) == {3}
    assert (callback.computed, callback.mask.digest) == (computed, digest)
    assert module.net[0].weight[callback.mask.flags("net.0.weight")].eq(0).all()


@pytest.mark.parametrize("shown", [True, False])
def test_the_gradient_has_a_progress_bar_if_the_trainer_has_one(shown: bool, capsys: pytest.CaptureFixture) -> None:
    callback = masking(num_samples=90, micro_batch_size=8)
    quiet_trainer(callback, max_epochs=0, enable_progress_bar=shown).fit(Classifier(), loader())
    printed = "".join(capsys.readouterr())
    assert ("Gradient for the mask" in printed) == shown
    assert ("0/12" in printed) == shown  # 5 batches of 16 in two pieces each, one of 10 in two


def test_validation_alone_does_nothing() -> None:
    callback, module = masking(), Classifier()
    quiet_trainer(callback).validate(module, loader(), verbose=False)
    assert callback.mask is None
    assert callback.state_dict() == {}


def test_a_run_that_breaks_off_leaves_no_hook() -> None:
    class Failing(Classifier):
        def on_train_batch_end(self, *_: Any) -> None:
            raise ZeroDivisionError

    module = Failing()
    with pytest.raises(ZeroDivisionError):
        quiet_trainer(masking()).fit(module, loader())
    assert hooks_of(module) == 0


@pytest.mark.parametrize("action", ["zero", "freeze", "train_only"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(action: str, tmp_path: Path) -> None:
    class Sequential(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net[2].p = 0.0

    def run(epochs: int, **options: Any) -> tuple[Sequential, Counting]:
        module, callback = Sequential(), Counting(0.1, targets=TARGETS, num_samples=90, action=action)
        checkpoint = ModelCheckpoint(tmp_path, filename=f"{epochs}", save_last=False)
        trainer = quiet_trainer(callback, checkpoint, max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(module, loader(), **options)
        return module, callback

    whole, first = run(4)
    run(2)
    resumed, second = run(4, ckpt_path=tmp_path / "2.ckpt")
    assert second.computed == 0
    assert second.mask == first.mask
    assert (second.predicted_change, second.measured_change) == (first.predicted_change, first.measured_change)
    for name, value in weights_of(whole).items():
        assert torch.equal(value.view(torch.int32), weights_of(resumed)[name].view(torch.int32)), name


def test_a_checkpoint_without_the_mask_gets_one_from_its_own_weights(tmp_path: Path) -> None:
    module = Classifier(seed=5)
    checkpoint = ModelCheckpoint(tmp_path, filename="plain")
    quiet_trainer(checkpoint, max_epochs=1, enable_checkpointing=True).fit(module, loader())
    expected = masking()
    quiet_trainer(expected, max_epochs=0).fit(copy.deepcopy(module), loader())
    found = masking()
    with pytest.warns(UserWarning, match=r"plain\.ckpt has no mask"):
        quiet_trainer(found, max_epochs=2).fit(Classifier(), loader(), ckpt_path=tmp_path / "plain.ckpt")
    assert found.mask == expected.mask


def test_the_weights_that_the_module_loads_in_its_setup_are_the_ones_that_count() -> None:
    class Loading(Classifier):
        def setup(self, stage: str) -> None:
            self.load_state_dict(Classifier(seed=9).state_dict())

    found, expected = masking(), masking()
    quiet_trainer(found, max_epochs=0).fit(Loading(), loader())
    quiet_trainer(expected, max_epochs=0).fit(Classifier(seed=9), loader())
    assert found.mask == expected.mask


def test_layers_that_configure_model_makes_are_found() -> None:
    class Late(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = None

        def configure_model(self) -> None:
            if self.net is None:
                self.net = Classifier(seed=9).net

    found, expected = masking(), masking()
    quiet_trainer(found, max_epochs=0).fit(Late(), loader())
    quiet_trainer(expected, max_epochs=0).fit(Classifier(seed=9), loader())
    assert found.mask == expected.mask


def test_a_mask_from_a_file_is_applied_without_a_gradient(tmp_path: Path) -> None:
    made = masking()
    quiet_trainer(made, max_epochs=0).fit(Classifier(), loader())
    made.mask.save(tmp_path / "mask.safetensors")
    callback, module = Counting(mask_path=tmp_path / "mask.safetensors", targets=TARGETS), Classifier(seed=4)
    quiet_trainer(callback).fit(module, loader())
    assert callback.computed == 0
    assert callback.mask == made.mask
    assert callback.predicted_change is None
    assert module.net[0].weight[callback.mask.flags("net.0.weight")].eq(0).all()


def test_a_mask_file_of_another_model_is_an_error(tmp_path: Path) -> None:
    Mask.from_flags({"net.0.weight": torch.zeros(3, 3) > 0}).save(tmp_path / "mask.safetensors")
    with pytest.raises(MaskingError, match=r"net\.0\.weight of shape \(3, 3\)"):
        quiet_trainer(masking(mask_path=tmp_path / "mask.safetensors")).fit(Classifier(), loader())


def test_every_option_of_the_mask_is_in_the_state_key() -> None:
    changes: list[dict[str, Any]] = [
        {}, {"fraction": 0.2}, {"fraction": None, "count": 9}, {"score": "snip"}, {"tail": "highest"},
        *({"scope": "layer"}, {"targets": ["0"]}, {"targets": ".*weight"}),
        *({"num_samples": None}, {"action": "freeze"}, {"mask_path": "m"}),
        {"seed": 1}, {"score": "random_matched"}, {"score": "random_matched", "matched_score": "snip"},
    ]  # fmt: skip
    assert len({masking(**change).state_key for change in changes}) == len(changes)
    assert masking().state_key == masking().state_key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "fraction=0.0"),
        ({"fraction": 1.0}, "fraction=1.0"),
        ({"fraction": -0.1}, "fraction=-0.1"),
        ({"fraction": float("nan")}, "fraction=nan"),
        ({"fraction": 0.1, "count": 3}, "fraction=0.1 and count=3"),
        ({"fraction": None, "count": 0}, "count=0"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"micro_batch_size": 2.5}, "micro_batch_size=2.5"),
        ({"tail": "middle"}, "tail='middle'.*'lowest', 'highest'"),
        ({"scope": "block"}, "scope='block'"),
        ({"action": "prune"}, "action='prune'"),
        ({"seed": "0"}, "seed='0'"),
        ({"score": "sing_gradient"}, "score='sing_gradient'"),
    ],
)
def test_an_option_out_of_range_is_an_error_that_names_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MaskingError, match=message):
        masking(**options)


def test_the_default_fraction_is_five_percent_unless_a_count_is_given() -> None:
    assert InfluenceMasking().options.effective_fraction == 0.05
    assert InfluenceMasking(count=3).options.effective_fraction is None


def test_targets_that_match_nothing_are_found_before_any_gradient() -> None:
    callback = Counting(targets=["no_such"])
    with pytest.raises(MaskingError, match="no_such"):
        quiet_trainer(callback).fit(Classifier(), loader())
    assert callback.computed == 0


def test_too_few_samples_is_an_error_that_says_how_many_there_are() -> None:
    with pytest.raises(MaskingError, match="found 100, num_samples=101"):
        quiet_trainer(masking(num_samples=101)).fit(Classifier(), loader(100))


def test_a_fraction_that_selects_nothing_is_an_error() -> None:
    with pytest.raises(MaskingError, match="select 0 weights of 640"):
        quiet_trainer(masking(fraction=0.001)).fit(Classifier(), loader())


def test_a_strategy_that_was_not_tested_is_refused_by_name() -> None:
    class HomeMade(type(quiet_trainer().strategy)):
        pass

    trainer = Trainer(**QUIET | {"strategy": HomeMade(device=torch.device("cpu")), "callbacks": masking()})
    with pytest.raises(MaskingError, match=r"HomeMade.*SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy"):
        trainer.fit(Classifier(), loader())


class Data(LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return loader(50)


class CalibrationData(Data):
    def calibration_dataloader(self) -> DataLoader:
        return loader(70, 10)


@pytest.mark.parametrize(("data", "samples"), [(Data, 50), (CalibrationData, 70)])
def test_all_samples_of_the_datamodule_are_taken(data: type[LightningDataModule], samples: int) -> None:
    callback = masking(num_samples=None)
    quiet_trainer(callback, max_epochs=0).fit(Classifier(), datamodule=data())
    assert callback.mask.provenance["num_samples"] == samples


def test_the_module_may_make_the_loader_or_several() -> None:
    class Own(Classifier):
        def train_dataloader(self) -> DataLoader:
            return loader(40)

    class Two(Classifier):
        def training_step(self, batch: dict, batch_idx: int) -> dict:
            return super().training_step(batch["one"], batch_idx)

    callback, several = masking(num_samples=None), masking(num_samples=None)
    quiet_trainer(callback, max_epochs=0).fit(Own(), None)
    assert callback.mask.provenance["num_samples"] == 40
    quiet_trainer(several, max_epochs=0).fit(Two(), {"one": loader(40), "two": loader(40)})
    assert several.mask == callback.mask


def test_a_loader_that_divides_its_samples_is_refused() -> None:
    sampler = DistributedSampler(dataset(), num_replicas=2, rank=0)
    with pytest.raises(MaskingError, match="DistributedSampler"):
        quiet_trainer(masking(num_samples=20)).fit(Classifier(), loader(sampler=sampler))


def test_no_training_data_is_an_error() -> None:
    trainer = quiet_trainer()
    trainer.fit_loop._data_source.instance = Classifier()
    with pytest.raises(MaskingError, match="nor a training dataloader"):
        calibration.default_loader(trainer)


def test_both_overridable_methods_are_used() -> None:
    class Own(InfluenceMasking):
        def calibration_batches(self, trainer):
            yield {"x": torch.eye(16)[:10], "y": torch.zeros(10, dtype=torch.long)}

        def compute_loss(self, module, batch, batch_idx):
            return nn.functional.cross_entropy(module.net(batch["x"]), batch["y"])

    callback = Own(0.1, targets=TARGETS, num_samples=8)
    module = Classifier()
    logits = module.eval().net(torch.eye(16)[:8])
    quiet_trainer(callback, max_epochs=0).fit(module, loader())
    assert callback.loss_before == pytest.approx(-logits.log_softmax(1)[:, 0].mean().item(), abs=1e-6)


def test_shuffled_labels_are_one_override_away() -> None:
    class Shuffled(InfluenceMasking):
        def calibration_batches(self, trainer):
            for inputs, labels in super().calibration_batches(trainer):
                yield inputs, labels[torch.randperm(len(labels))]

    one, other, plain = (
        Shuffled(0.1, targets=TARGETS, num_samples=90),
        Shuffled(0.1, targets=TARGETS, num_samples=90),
        masking(),
    )
    for callback in (one, other, plain):
        quiet_trainer(callback, max_epochs=0).fit(Classifier(), loader())
    assert one.mask == other.mask
    assert one.mask != plain.mask


@pytest.mark.parametrize(
    "score", ["sign_gradient", "taylor", "snip", "gradient", "magnitude", "random", "random_matched"]
)
@pytest.mark.parametrize("scope", ["global", "layer", "tensor"])
def test_every_score_and_scope_masks_exactly_k(score: str, scope: str) -> None:
    callback = masking(score=score, scope=scope)
    quiet_trainer(callback, max_epochs=0).fit(Classifier(), loader())
    assert callback.num_masked == 64
    if scope != "global":
        assert callback.mask.counts == {"net.0.weight": 51, "net.3.weight": 13}
