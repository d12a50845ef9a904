from dataclasses import replace

import pytest
import torch

from modules import Influence, OptionError
from modules.masking import DEFAULT_OPTIONS


@pytest.fixture
def masked(tiny_qwen, docstrings, trainer, caches):
    """Masks a model with the same random head and returns its masking; all share one `Caches`."""

    def run(seed=0, data=None, targets=None, **options):
        torch.manual_seed(seed)
        masking = replace(DEFAULT_OPTIONS, **options)
        module = Influence(backbone=tiny_qwen, num_labels=7, targets=targets, masking=masking)
        module.caches = caches
        trainer(max_epochs=0).fit(module, datamodule=docstrings(**(data or {})))
        return module.masking

    return run


def test_arms_at_the_same_start_share_one_gradient(masked):
    one = masked(tail="lowest")
    other = masked(tail="highest", score="taylor", fraction=0.1)
    assert (one.gradient_shared, other.gradient_shared) == (False, True)
    assert one.gradient_seconds == other.gradient_seconds > 0
    assert one.loss_before == other.loss_before


def test_a_mask_of_a_shared_gradient_is_the_one_of_its_own(masked):
    own = masked(tail="highest")
    masked(seed=1)  # another head: another gradient takes the place
    masked(tail="lowest")
    shared = masked(tail="highest")
    assert shared.gradient_shared
    assert shared.mask.digest == own.mask.digest
    assert (shared.predicted_change, shared.measured_change) == (own.predicted_change, own.measured_change)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"targets": ["q_proj"]},
        {"micro_batch_size": 8},
        {"data": {"calibration_size": 20}},
        {"data": {"shuffle_calibration_labels": True}},
        {"data": {"max_length": 16}},
    ],
    ids=lambda change: next(iter(change.get("data", change))),
)
def test_whatever_a_gradient_depends_on_makes_another(change, masked):
    masked()
    assert not masked(**change).gradient_shared


@pytest.mark.parametrize("option", [{"seed": 1}, {"num_samples": 8}, {"action": "freeze"}, {"targets": ["q"]}])
def test_an_option_that_the_condition_decides_is_refused_before_a_backbone_is_loaded(option):
    with pytest.raises(OptionError, match=next(iter(option))):
        Influence(backbone="nobody/nothing", masking=replace(DEFAULT_OPTIONS, **option))


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_mask_stands_in_a_checkpoint_once(weights_only, tiny_qwen, docstrings, trainer, tmp_path):
    module, path = Influence(backbone=tiny_qwen, num_labels=7), tmp_path / "saved.ckpt"
    fitting = trainer(max_epochs=0)
    fitting.fit(module, datamodule=docstrings())
    fitting.save_checkpoint(path, weights_only=weights_only)
    checkpoint = torch.load(path, weights_only=True)
    states = [checkpoint, *checkpoint.get("callbacks", {}).values()]
    assert [state["mask"]["digest"] for state in states if "mask" in state] == [module.masking.mask.digest]
    other = Influence(backbone=tiny_qwen, num_labels=7)
    other.on_load_checkpoint(checkpoint)
    assert other.backbone_state() == module.backbone_state()
