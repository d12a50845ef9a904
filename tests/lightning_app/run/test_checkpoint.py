import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_app.run.checkpoints import LastCheckpoint


@pytest.mark.parametrize(("seconds", "epochs"), [(0.5, list(range(10))), (5.0, [0, 3, 6, 9]), (7.0, [0, 4, 8])])
def test_writing_what_a_stopped_fit_needs_takes_at_most_a_tenth_of_the_time(seconds, epochs, tmp_path, monkeypatch):
    now, saved = 0.0, []

    def save(trainer, *_):
        nonlocal now
        now += seconds
        saved.append(trainer.current_epoch)

    def epoch(self):
        nonlocal now
        now += 20

    monkeypatch.setattr("lightning_app.run.checkpoints.perf_counter", lambda: now)
    monkeypatch.setattr(Trainer, "save_checkpoint", save)
    monkeypatch.setattr(BoringModel, "on_train_epoch_start", epoch)
    options = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        accelerator="cpu", max_epochs=10, limit_train_batches=1, limit_val_batches=0, default_root_dir=tmp_path,
        callbacks=LastCheckpoint(), **options,
    )  # fmt: skip
    trainer.fit(BoringModel())
    assert saved == epochs
