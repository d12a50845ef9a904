from dataclasses import replace

import pytest
import torch

from influence_masking import MaskingError
from modules import CheckpointError, Influence, OptionError, Sweep
from modules.masking import DEFAULT_OPTIONS


@pytest.fixture
def masked(tiny_qwen, docstrings, trainer, caches, with_head):
    """Mask a model with the same random head and return its masking; all share one `Caches`."""

    def run(seed=0, data=None, targets=None, **options):
        masking = replace(DEFAULT_OPTIONS, **options)
        module = with_head(Influence(backbone=tiny_qwen, num_labels=7, targets=targets, masking=masking), seed)
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
        {"num_samples": 20},
        {"data": {"calibration_size": 20}},
        {"data": {"shuffle_calibration_labels": True}},
        {"data": {"max_length": 16}},
    ],
    ids=lambda change: next(iter(change.get("data", change))),
)
def test_whatever_a_gradient_depends_on_makes_another(change, masked):
    masked()
    assert not masked(**change).gradient_shared


def test_the_gradient_is_taken_over_all_calibration_rows_unless_a_number_is_given(masked):
    assert masked().mask.provenance["num_samples"] == 50
    assert masked(num_samples=20).mask.provenance["num_samples"] == 20


def test_a_mask_from_a_file_is_used_without_a_gradient(masked, tmp_path):
    path = tmp_path / "mask.safetensors"
    made = masked(tail="highest").mask
    made.save(path)
    used = masked(mask_path=path)
    assert used.mask.digest == made.digest
    assert used.gradient_seconds is None
    with pytest.raises(MaskingError, match="nowhere"):
        masked(mask_path=tmp_path / "nowhere")


DECIDED = {"seed": 1, "action": "freeze", "targets": ["q_proj"]}
DECIDED_BY_A_SWEEP = DECIDED | {
    "fraction": 0.1,
    "count": 3,
    "tail": "highest",
    "score": "snip",
    "matched_score": "snip",
    "mask_path": "mask.safetensors",
}


@pytest.mark.parametrize(
    ("arm", "name", "value"),
    [
        (arm, *option)
        for arm, options in ((Influence, DECIDED), (Sweep, DECIDED_BY_A_SWEEP))
        for option in options.items()
    ],
)
def test_an_option_that_is_decided_elsewhere_is_refused_before_a_backbone_is_loaded(arm, name, value):
    with pytest.raises(OptionError, match=rf"model\.masking\.{name} is .*Leave it out"):
        arm(backbone="nobody/nothing", masking=replace(DEFAULT_OPTIONS, **{name: value}))


def test_a_sweep_ranks_weights_within_the_scope_of_its_options(masked, tiny_qwen, docstrings, trainer, with_head):
    expected = masked(fraction=0.1, scope="tensor").mask.digest
    assert expected != masked(fraction=0.1).mask.digest
    masking = replace(DEFAULT_OPTIONS, scope="tensor")
    module = with_head(Sweep(backbone=tiny_qwen, num_labels=7, fractions=[0.1], tails=["lowest"], masking=masking))
    trainer().fit(module, datamodule=docstrings())
    assert [point.digest for point in module.result.points] == [expected]


@pytest.fixture
def saved(tiny_qwen, docstrings, trainer, tmp_path, with_head):
    """Save a checkpoint of a masked model; return its content and the model."""

    def save(weights_only):
        module, path = with_head(Influence(backbone=tiny_qwen, num_labels=7)), tmp_path / "saved.ckpt"
        fitting = trainer(max_epochs=0)
        fitting.fit(module, datamodule=docstrings())
        fitting.save_checkpoint(path, weights_only=weights_only)
        return torch.load(path, weights_only=True), module

    return save


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_mask_stands_in_a_checkpoint_once(weights_only, saved, tiny_qwen):
    checkpoint, module = saved(weights_only)
    states = [checkpoint, *checkpoint.get("callbacks", {}).values()]
    assert [state["mask"]["digest"] for state in states if "mask" in state] == [module.masking.mask.digest]
    other = Influence(backbone=tiny_qwen, num_labels=7)
    other.on_load_checkpoint(checkpoint)
    assert other.backbone_state() == module.backbone_state()


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_checkpoint_without_its_mask_is_refused(weights_only, saved, tiny_qwen):
    checkpoint, _ = saved(weights_only)
    checkpoint.pop("mask", None)
    checkpoint["callbacks"] = {}
    with pytest.raises(CheckpointError, match="holds no mask"):
        Influence(backbone=tiny_qwen, num_labels=7).on_load_checkpoint(checkpoint)


def test_a_gradient_below_a_new_head_is_refused(tiny_qwen, docstrings, trainer):
    module = Influence(backbone=tiny_qwen, num_labels=7)
    with pytest.raises(MaskingError, match=r"gradient of all .* candidates is zero.*such as a new head"):
        trainer(max_epochs=0).fit(module, datamodule=docstrings())


def test_random_weights_need_no_gradient(tiny_qwen, docstrings, trainer):
    module = Influence(backbone=tiny_qwen, num_labels=7, masking=replace(DEFAULT_OPTIONS, score="random"))
    trainer(max_epochs=0).fit(module, datamodule=docstrings())
    assert module.masking.num_masked == module.masking.num_candidates // 20
