"""A training step called for its loss alone."""

import pytest
import torch
from lightning.pytorch import LightningModule
from models import Classifier, loader, quiet_trainer
from torch import Tensor, nn

from influence_masking import InfluenceMasking, MaskingError
from influence_masking.gradients.training_step import muted, training_loss


class Step(LightningModule):
    """Return whatever it is told to."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def training_step(self, batch: Tensor) -> object:
        return self.output


class Manual(Classifier):
    """Call `manual_backward` so many times."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.automatic_optimization, self.calls = False, calls

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()

        def closure() -> Tensor:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            return loss

        with optimizer.toggle_model():
            for _ in range(self.calls):
                optimizer.step(closure=closure)
        if self.lr_schedulers() is not None:
            raise AssertionError


def test_the_loss_is_the_tensor_or_the_one_under_its_name() -> None:
    loss = torch.tensor(3.0)
    assert training_loss(Step(loss), None, 0) is loss
    assert training_loss(Step({"loss": loss, "other": 1}), None, 0) is loss


@pytest.mark.parametrize("output", [None, {"logits": torch.ones(2)}, 3.0])
def test_a_step_without_a_loss_is_an_error_that_says_what_to_override(output: object) -> None:
    with pytest.raises(MaskingError, match="compute_loss"):
        training_loss(Step(output), None, 0)


def test_logging_is_muted_inside_and_back_outside() -> None:
    module = Step(None)
    module.log_dict = kept = lambda *_: None
    with muted(module):
        assert module.log("a", 1) is None
        assert module.log_dict({"a": 1}) is None
    assert "log" not in vars(module)
    assert module.log_dict is kept


def test_a_closure_of_manual_optimization_is_run_for_its_loss() -> None:
    manual, automatic = (InfluenceMasking(0.1, targets=["0"], num_samples=90) for _ in range(2))
    quiet_trainer(manual, max_epochs=1).fit(Manual(calls=1), loader())
    quiet_trainer(automatic, max_epochs=0).fit(Classifier(), loader())
    assert manual.mask == automatic.mask
    assert manual.loss_before == automatic.loss_before


@pytest.mark.parametrize("calls", [0, 2])
def test_manual_optimization_without_exactly_one_loss_is_an_error(calls: int) -> None:
    with pytest.raises(MaskingError, match=f"found {calls} calls of manual_backward"):
        quiet_trainer(InfluenceMasking(0.1, targets=["0"], num_samples=90)).fit(Manual(calls), loader())
