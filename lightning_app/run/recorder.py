"""Writes what a run leaves: `fit.json` after training; predictions and `metrics.json` after the evaluation."""

import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import pyarrow as pa
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from influence_masking import InfluenceMasking
from lightning_app.results.files import (
    FIT_FILE,
    MASK_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    SWEEP_FILE,
    write_json,
    write_parquet,
)
from lightning_app.results.records import read_fit
from modules import Sweep

PACKAGES = ("torch", "lightning", "transformers", "datasets", "peft", "torchmetrics")


class Recorder(Callback):
    """Records a condition into its run folder; always on.

    `metrics.json` is written last and atomically: a folder that has it holds a complete condition.
    """

    def __init__(self) -> None:
        self._batches: list[dict[str, torch.Tensor]] = []
        self._started: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts the clock and the memory gauge of a phase; what an earlier fit left here is no longer true."""
        if stage == "fit" and trainer.is_global_zero:
            for name in (METRICS_FILE, PREDICTIONS_FILE, FIT_FILE, MASK_FILE, SWEEP_FILE):
                (Path(trainer.default_root_dir) / name).unlink(missing_ok=True)
        self._started[stage] = perf_counter()
        self._batches.clear()
        reset_peak_memory(trainer.strategy.root_device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training begins here; what came before is set-up, a mask's gradient included."""
        self._started["train"] = perf_counter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the mask and what is known of the training."""
        now, folder = perf_counter(), Path(trainer.default_root_dir)
        if not trainer.is_global_zero or cast(Any, trainer).fast_dev_run:
            return
        record: dict[str, Any] = {
            "trainable_parameters": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            "optimisation_steps": trainer.global_step,
            "epochs": trainer.current_epoch,
            "seconds": {"fit": now - self._started["fit"], "train": now - self._started.get("train", now)},
            "fit_peak_memory_bytes": peak_memory(trainer.strategy.root_device),
        }
        for callback in cast(Any, trainer).callbacks:
            if isinstance(callback, InfluenceMasking) and callback.mask is not None:
                record["seconds"] |= callback.seconds | _gradient_seconds(callback)
                record |= _masking_record(callback) | {"mask_digest": callback.mask.digest}
                callback.mask.save(folder / MASK_FILE, dataset=cast(Any, trainer).datamodule.name)
        if isinstance(pl_module, Sweep) and pl_module.sweep:
            write_json(folder / SWEEP_FILE, pl_module.sweep)
        write_json(folder / FIT_FILE, record)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keeps the rows, labels and logits of the eval split.

        They stay on a GPU, which would else wait after each batch; XLA would make the next batch part of its program.
        """
        if trainer.state.fn != "fit":
            on_xla = trainer.strategy.root_device.type == "xla"
            self._batches.append({key: value.cpu() if on_xla else value for key, value in outputs.items()})

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes predictions, then metrics."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "validate")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same as a validation."""
        self._write(trainer, pl_module, "test")

    def _predictions(self) -> pa.Table:
        """Columns `row`, `label` and `logits` (a list a row) of all processes, in the order of the source's rows."""
        batches = [_in_one(self._batches)] if self._batches else []
        if torch.distributed.is_initialized():
            everyone: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyone, batches)
            batches = [batch for part in everyone for batch in part]
        columns = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        order = columns["row"].argsort(stable=True)
        return pa.table(
            {
                "row": columns["row"][order].numpy(),
                "label": columns["labels"][order].numpy(),
                "logits": columns["logits"][order].float().tolist(),
            }
        )

    def _write(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        from lightning_app.results.markdown import condition_card  # brings pandas, which training need not wait for

        predictions = self._predictions()
        if not trainer.is_global_zero:
            return
        folder, datamodule = Path(trainer.default_root_dir), cast(Any, trainer).datamodule
        fit = read_fit(folder / FIT_FILE)
        seconds = fit.pop("seconds", {}) | {"evaluate": perf_counter() - self._started[stage]}
        metrics = {name.removeprefix("eval/"): float(value) for name, value in trainer.callback_metrics.items()}
        device = trainer.strategy.root_device
        condition = {
            "dataset": datamodule.name,
            "arm": folder.parent.name,
            "seed": pl_module.seed,
            "backbone": pl_module.backbone_name,
        }
        write_parquet(folder / PREDICTIONS_FILE, predictions)
        record = {
            **condition,
            **metrics,
            "eval_split": datamodule.eval_split_name,
            "early_stop_on": datamodule.early_stop_on,
            "split_sizes": datamodule.split_sizes,
            **fit,
            "seconds": seconds,
            "peak_memory_bytes": max(fit.get("fit_peak_memory_bytes", 0), peak_memory(device)),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            "precision": str(trainer.precision),
            "versions": {name: version(name) for name in PACKAGES},
            "dataset_fingerprint": datamodule.fingerprint,
            "backbone_fingerprint": pl_module.backbone_fingerprint,
        }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(condition, {f"eval/{name}": value for name, value in metrics.items()})
                logger.experiment.add_text("condition", condition_card(record))
        write_json(folder / METRICS_FILE, record)


def _in_one(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The batches end to end on the CPU, without the places that have no row."""
    whole = {key: torch.cat([batch[key] for batch in batches]).cpu() for key in batches[0]}
    return {key: value[whole["row"] >= 0] for key, value in whole.items()}


def _masking_record(callback: InfluenceMasking) -> dict[str, Any]:
    return {
        "masked_parameters": callback.num_masked,
        "candidate_parameters": callback.num_candidates,
        "calibration_samples": cast(Any, callback.mask).provenance.get("num_samples"),
        "predicted_change": callback.predicted_change,
        "measured_change": callback.measured_change,
        "gradient_shared": getattr(callback, "gradient_shared", False),
    }


def _gradient_seconds(callback: InfluenceMasking) -> dict[str, float]:
    """What the gradient took, also where another arm of this process had taken it before."""
    seconds = getattr(callback, "gradient_seconds", None)
    return {} if seconds is None else {"gradient": seconds}


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new gauge: the device's own on CUDA, the process's high-water mark on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):  # a container may forbid it: then the gauge counts from the start of the process
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes at the highest since the reset: of the GPU, or of the process (on macOS since its start, on Windows 0)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
