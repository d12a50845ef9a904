"""What is logged and written of an evaluation, for a module whose logits are known."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader

from lightning_app.errors import UsageError
from lightning_app.results.metrics import METRICS, compute_metrics
from lightning_app.run.recorder import MetricLogger, Recorder, predictions_table, sweep_record
from modules.sweep import SweepResult

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.tensor([7, 3, 5, 1, -1, -1])
LABELS = torch.tensor([0, 1, 2, 1, -100, -100])
LOGITS = torch.randn(6, 3, generator=GENERATOR)


class Known(LightningModule):
    """Predicts logits that were given, in batches of two; a weight trains so that there is a fit."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return (self.weight - 1).square().sum()

    def validation_step(self, batch, batch_idx):
        return {"row": ROWS[batch], "labels": LABELS[batch], "logits": LOGITS[batch]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def trainer(tmp_path):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    quiet |= {"accelerator": "cpu", "default_root_dir": tmp_path}
    return lambda *callbacks, **options: Trainer(callbacks=list(callbacks), **(quiet | options))


@pytest.fixture
def loader() -> DataLoader:
    return DataLoader(range(6), batch_size=2)


def test_an_evaluation_logs_every_metric_of_the_registry_over_the_rows_that_are_real(trainer, loader):
    logger = MetricLogger()
    (logged,) = trainer(logger).validate(Known(), loader, verbose=False)
    assert logged == {f"eval/{name}": value for name, value in compute_metrics(LABELS[:4], LOGITS[:4]).items()}
    assert logger.columns["row"].tolist() == [7, 3, 5, 1]


def test_a_fit_logs_them_before_early_stopping_looks(trainer, loader):
    class Seen(Callback):
        def __init__(self):
            self.names = set()

        def on_validation_end(self, trainer, pl_module):
            self.names |= set(trainer.callback_metrics)

    # the order does not matter: metrics are logged at the epoch's end, which is before the validation's end
    stopping, seen = EarlyStopping("val/accuracy", mode="max", patience=1), Seen()
    fitting = trainer(stopping, seen, MetricLogger(), max_epochs=9, num_sanity_val_steps=2)
    fitting.fit(Known(), loader, loader)
    assert seen.names == {f"val/{name}" for name in METRICS}
    assert fitting.current_epoch == 2


def test_an_interrupted_evaluation_leaves_nothing_to_the_next(trainer, loader):
    class Interrupt(Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                raise ValueError("interrupted")

    logger = MetricLogger()
    with pytest.raises(ValueError, match="interrupted"):
        trainer(logger, Interrupt()).validate(Known(), loader, verbose=False)
    trainer(logger).validate(Known(), loader, verbose=False)
    assert logger.columns["row"].tolist() == [7, 3, 5, 1]


def test_without_an_identity_the_recorder_refuses_to_run(trainer, loader):
    with pytest.raises(UsageError, match=r"Set recorder\.identity"):
        trainer(Recorder()).validate(Known(), loader, verbose=False)


def test_predictions_are_in_the_order_of_the_rows():
    columns = {"row": ROWS[:4], "labels": LABELS[:4], "logits": LOGITS[:4]}
    table = predictions_table(columns).to_pydict()
    assert table["row"] == [1, 3, 5, 7]
    assert table["label"] == [1, 1, 2, 0]
    assert table["logits"] == LOGITS[[3, 1, 2, 0]].tolist()


def test_a_sweep_is_recorded_without_a_mask_when_nothing_was_masked():
    record = sweep_record(SweepResult(0.5, (LABELS[:4], LOGITS[:4]), [], []))
    expected = {"loss": 0.5, **compute_metrics(LABELS[:4], LOGITS[:4])}
    assert record == {"split": "dev", "baseline": expected, "points": []}
