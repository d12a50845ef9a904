"""Measures evaluations, and writes the results of a run: `fit.json`, predictions and `metrics.json`."""

import sys
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import pyarrow as pa
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from influence_masking import InfluenceMasking
from lightning_app.errors import UsageError
from lightning_app.results.files import (
    FIT_FILE,
    MASK_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    SWEEP_FILE,
    write_json,
    write_parquet,
)
from lightning_app.results.identity import Identity
from lightning_app.results.metrics import chance_levels, compute_metrics
from lightning_app.results.records import read_fit
from modules import Sweep
from modules.backbone import quantization
from modules.sweep import SweepResult

PACKAGES = ("torch", "lightning", "transformers", "datasets", "peft", "torchmetrics")


class MetricLogger(Callback):
    """Logs the registry's metrics of every evaluation: as `val/<name>` in a fit, as `eval/<name>` otherwise.

    Callbacks come before the module at the end of an epoch, and early stopping and checkpoints act after it, in
    `on_validation_end` (`EvaluationLoop.on_run_end`): by then these metrics are logged.

    Attributes:
        columns: `row`, `labels` and `logits` of the last evaluation, of all processes, on the CPU.
        metrics: Its metrics by name.
    """

    def __init__(self) -> None:
        self._batches: list[dict[str, torch.Tensor]] = []
        self.columns: dict[str, torch.Tensor] = {}
        self.metrics: dict[str, float] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an evaluation left that was interrupted."""
        self._batches.clear()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep rows, labels and logits.

        They stay on a GPU, which would have to wait after each batch for a copy. XLA would make the next batch part of
        its program, so there they are copied.
        """
        on_xla = trainer.strategy.root_device.type == "xla"
        self._batches.append({key: value.cpu() if on_xla else value for key, value in outputs.items()})

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log."""
        self.columns = _of_all_processes(self._batches)
        self._batches = []
        self.metrics = compute_metrics(self.columns["labels"], self.columns["logits"])
        is_fit = trainer.state.fn == "fit"
        logged = {f"{'val' if is_fit else 'eval'}/{name}": torch.tensor(value) for name, value in self.metrics.items()}
        pl_module.log_dict(logged, prog_bar=is_fit)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


class Recorder(MetricLogger):
    """Records a condition into its run folder; always on.

    `metrics.json` is written last and atomically: a folder that has it holds a complete condition.

    Attributes:
        identity: What the condition is called; the command line sets it once dataset and model are built.
    """

    def __init__(self) -> None:
        super().__init__()
        self.identity: Identity | None = None
        self._started: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock and the memory gauge of a phase, and delete the results of an earlier fit.

        Raises:
            UsageError: If there is no identity to record.
        """
        if self.identity is None:
            raise UsageError("The Recorder has no identity. Set recorder.identity before the Trainer runs.")
        if stage == "fit" and trainer.is_global_zero:
            for name in (METRICS_FILE, PREDICTIONS_FILE, FIT_FILE, MASK_FILE, SWEEP_FILE):
                (Path(trainer.default_root_dir) / name).unlink(missing_ok=True)
        self._started[stage] = perf_counter()
        reset_peak_memory(trainer.strategy.root_device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the training; set-up, with the gradient of a mask, comes before."""
        self._started["train"] = perf_counter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the mask and what is known of the training."""
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
                callback.mask.save(folder / MASK_FILE, dataset=cast(Identity, self.identity).dataset)
        if isinstance(pl_module, Sweep) and pl_module.result:
            write_json(folder / SWEEP_FILE, sweep_record(pl_module.result))
        write_json(folder / FIT_FILE, record)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write predictions, then metrics, after an evaluation by itself."""
        if trainer.state.fn != "fit" and trainer.is_global_zero:
            write_parquet(Path(trainer.default_root_dir) / PREDICTIONS_FILE, predictions_table(self.columns))
            self._write_metrics(trainer, pl_module)

    on_test_end = on_validation_end

    def _names(self, pl_module: LightningModule) -> dict[str, Any]:
        """Return the names and the kind of the condition, as the user gave them."""
        identity = cast(Identity, self.identity)
        arm = identity.arm
        return {
            "dataset": identity.dataset,
            "arm": arm.label,
            "seed": identity.seed,
            "role": arm.role,
            "starts_from": arm.starts_from,
            "control": arm.control,
            "color": arm.color,
            "trains": pl_module.trains,
            "backbone": pl_module.backbone_name,
        }

    def _write_metrics(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from lightning_app.results.markdown import condition_card  # brings pandas, which training need not wait for

        folder, datamodule = Path(trainer.default_root_dir), cast(Any, trainer).datamodule
        fit, device = read_fit(folder / FIT_FILE), trainer.strategy.root_device
        started = self._started[cast(TrainerFn, trainer.state.fn).value]
        seconds = fit.pop("seconds", {}) | {"evaluate": perf_counter() - started}
        names = self._names(pl_module)
        record = {
            **names,
            **self.metrics,
            "chance": chance_levels(self.columns["labels"].numpy(), self.columns["logits"].shape[1]),
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
            "backbone_quantization": quantization(str(pl_module.backbone_name)),
        }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(names, {f"eval/{name}": value for name, value in self.metrics.items()})
                logger.experiment.add_text("condition", condition_card(record))
        write_json(folder / METRICS_FILE, record)


def _of_all_processes(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the batches of all processes end to end on the CPU, without places that only fill a batch."""
    parts = []
    if batches:  # a process may have none
        whole = {key: torch.cat([batch[key] for batch in batches]).cpu() for key in batches[0]}
        parts = [{key: value[whole["row"] >= 0] for key, value in whole.items()}]
    if torch.distributed.is_initialized():
        everyone: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, parts)
        parts = [part for own in everyone for part in own]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def predictions_table(columns: dict[str, torch.Tensor]) -> pa.Table:
    """Return columns `row`, `label` and `logits` (one list per row), in the order of the source's rows."""
    order = columns["row"].argsort(stable=True)
    return pa.table(
        {
            "row": columns["row"][order].numpy(),
            "label": columns["labels"][order].numpy(),
            "logits": columns["logits"][order].float().tolist(),
        }
    )


def sweep_record(result: SweepResult) -> dict[str, Any]:
    """Return what `sweep.json` holds: the metrics on dev without a mask and under each mask."""
    points = [
        {key: value for key, value in asdict(point).items() if key != "metrics"} | compute_metrics(*predictions)
        for point, predictions in zip(result.points, result.predictions, strict=True)
    ]
    baseline = {"loss": result.loss, **compute_metrics(*result.unmasked)}
    return {"split": "dev", "baseline": baseline, "points": points}


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
    """Return what the gradient took, also where another arm of this process had taken it before."""
    seconds = getattr(callback, "gradient_seconds", None)
    return {} if seconds is None else {"gradient": seconds}


def reset_peak_memory(device: torch.device) -> None:
    """Start a new gauge: the device's own on CUDA, the process's high-water mark on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):  # a container may forbid it: then the gauge counts from the start of the process
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Return the peak since the reset in bytes: of the GPU, or of the process (macOS: since its start; Windows: 0)."""
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
