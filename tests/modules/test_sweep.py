import pytest
import torch

from influence_masking import MaskingError, MaskingOptions
from modules import Influence, OptionError, Sweep


@pytest.fixture
def swept(tiny_qwen, docstrings, trainer):
    torch.manual_seed(0)
    module = Sweep(backbone=tiny_qwen, num_labels=7, fractions=[0.001, 0.05], scores=["sign_gradient", "magnitude"])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trainer().fit(module, datamodule=docstrings())
    return module, before


def test_every_score_tail_and_fraction_is_measured_and_the_weights_are_left(swept):
    module, before = swept
    points = module.sweep["points"]
    assert [(p["score"], p["tail"], p["fraction"]) for p in points] == [
        (score, tail, fraction)
        for score in ("sign_gradient", "magnitude")
        for tail in ("lowest", "highest")
        for fraction in (0.001, 0.05)
    ]
    assert module.sweep["split"] == "dev"
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("tail", ["lowest", "highest"])
def test_a_point_is_what_the_arm_of_that_mask_finds(tail, swept, tiny_qwen, docstrings, trainer):
    torch.manual_seed(0)
    arm, data = (
        Influence(backbone=tiny_qwen, num_labels=7, masking=MaskingOptions(tail=tail, num_samples=None)),
        docstrings(early_stop_on="dev"),
    )
    trainer(max_epochs=0).fit(arm, datamodule=data)
    (point,) = (
        p for p in swept[0].sweep["points"] if (p["score"], p["tail"], p["fraction"]) == ("sign_gradient", tail, 0.05)
    )
    assert point["digest"] == arm.masking.mask.digest
    assert point["num_masked"] == arm.masking.num_masked
    assert point["predicted_change"] == arm.masking.predicted_change
    assert point["measured_change"] == arm.masking.measured_change
    (dev,) = trainer().validate(arm, data.ordered_dataloader("dev"), verbose=False)
    assert point["accuracy"] == pytest.approx(dev["eval/accuracy"])
    assert point["nll"] == pytest.approx(dev["eval/nll"], rel=1e-5)


def test_the_unmasked_model_is_measured_beside(swept, docstrings, trainer):
    module, _ = swept
    data = docstrings()
    data.setup()
    (dev,) = trainer().validate(module, data.ordered_dataloader("dev"), verbose=False)
    assert module.sweep["baseline"]["accuracy"] == pytest.approx(dev["eval/accuracy"])
    assert module.sweep["baseline"]["nll"] == pytest.approx(dev["eval/nll"], rel=1e-5)


@pytest.mark.parametrize("wrong", [{"fractions": []}, {"fractions": [0.0]}, {"tails": []}, {"scores": []}])
def test_nothing_to_sweep_is_refused_before_a_backbone_is_loaded(wrong):
    with pytest.raises(OptionError, match="needs fractions between 0 and 1"):
        Sweep(backbone="nobody/nothing", **wrong)


def test_an_unknown_score_is_refused_before_a_backbone_is_loaded():
    with pytest.raises(MaskingError, match="sign_gradeint"):
        Sweep(backbone="nobody/nothing", scores=["sign_gradeint"])
