import pytest
import torch

from influence_masking import MaskingError, MaskingOptions
from lightning_app.run.recorder import MetricLogger
from modules import Influence, OptionError, Sweep


@pytest.fixture
def swept(tiny_qwen, docstrings, trainer, with_head):
    scores = ["sign_gradient", "magnitude"]
    module = with_head(Sweep(backbone=tiny_qwen, num_labels=7, fractions=[0.001, 0.05], scores=scores))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trainer().fit(module, datamodule=docstrings())
    return module, before


def test_every_score_tail_and_fraction_is_measured_and_the_weights_are_left(swept):
    module, before = swept
    assert [(point.score, point.tail, point.fraction) for point in module.result.points] == [
        (score, tail, fraction)
        for score in ("sign_gradient", "magnitude")
        for tail in ("lowest", "highest")
        for fraction in (0.001, 0.05)
    ]
    assert len(module.result.predictions) == len(module.result.points)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("tail", ["lowest", "highest"])
def test_a_point_is_what_the_arm_of_that_mask_finds(tail, swept, tiny_qwen, docstrings, trainer, with_head):
    arm, data = (
        Influence(backbone=tiny_qwen, num_labels=7, masking=MaskingOptions(tail=tail, num_samples=None)),
        docstrings(early_stop_on="dev"),
    )
    trainer(max_epochs=0).fit(with_head(arm), datamodule=data)
    ((point, predictions),) = (
        (point, predictions)
        for point, predictions in zip(swept[0].result.points, swept[0].result.predictions, strict=True)
        if (point.score, point.tail, point.fraction) == ("sign_gradient", tail, 0.05)
    )
    assert point.digest == arm.masking.mask.digest
    assert point.num_masked == arm.masking.num_masked
    assert point.predicted_change == arm.masking.predicted_change
    assert point.measured_change == arm.masking.measured_change
    check_predictions(predictions, evaluated(trainer, arm, data))


def evaluated(trainer, module, data) -> dict[str, torch.Tensor]:
    """Return rows, labels and logits of an evaluation of the dev split."""
    logger = MetricLogger()
    trainer(callbacks=[logger]).validate(module, data.ordered_dataloader("dev"), verbose=False)
    return logger.columns


def check_predictions(predictions, columns):
    labels, logits = predictions
    assert torch.equal(labels, columns["labels"])
    torch.testing.assert_close(logits, columns["logits"], rtol=1e-5, atol=1e-6)


def test_the_unmasked_model_predicts_what_an_evaluation_finds(swept, docstrings, trainer):
    module, _ = swept
    data = docstrings()
    data.setup()
    check_predictions(module.result.unmasked, evaluated(trainer, module, data))


@pytest.mark.parametrize("wrong", [{"fractions": []}, {"fractions": [0.0]}, {"tails": []}, {"scores": []}])
def test_nothing_to_sweep_is_refused_before_a_backbone_is_loaded(wrong):
    (name,) = wrong
    with pytest.raises(OptionError, match=rf"model\.{name} is \[.*\], but must be a list"):
        Sweep(backbone="nobody/nothing", **wrong)


def test_an_unknown_score_is_refused_before_a_backbone_is_loaded():
    with pytest.raises(MaskingError, match="sign_gradeint"):
        Sweep(backbone="nobody/nothing", scores=["sign_gradeint"])
