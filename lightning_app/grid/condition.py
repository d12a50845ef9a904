"""One condition: a dataset, an arm and a seed, run by the same code as `influence fit` and `influence validate`."""

import gc
import logging
import shutil
import sys
import traceback
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_app.errors import UsageError, user_mistake
from lightning_app.results.files import METRICS_FILE, write_json, write_text
from lightning_app.results.records import read_condition, read_metrics, settings_digest

CONDITION_FILE = "condition.json"


@dataclass(frozen=True)
class Condition:
    """One dataset, arm and seed, and the words of the command line that run it."""

    dataset: str
    arm: str
    seed: int
    folder: Path
    args: tuple[str, ...]
    configs: tuple[Path, ...]
    overwrite: bool = False

    def __str__(self) -> str:
        return f"{self.dataset}/{self.arm}/seed{self.seed}"

    @property
    def experiment(self) -> Path:
        """The folder of the experiment that it belongs to."""
        return self.folder.parents[2]

    @property
    def places(self) -> tuple[str, ...]:
        """What a run of it leaves in that folder: results, what it printed, and the traceback of a failure."""
        return tuple(
            path.relative_to(self.experiment).as_posix() for path in (self.folder, self.log_file, self.error_file)
        )

    def begins_from(self, other: "Condition") -> bool:
        """Whether the other is the baseline whose head this one starts with."""
        same = (self.dataset, self.seed) == (other.dataset, other.seed)
        return same and other.arm == "baseline" != self.arm

    @property
    def is_complete(self) -> bool:
        """Whether its metrics, which are written last, are there and whole."""
        try:
            return bool(read_metrics(self.folder / METRICS_FILE))
        except (UsageError, FileNotFoundError, NotADirectoryError):
            return False

    @property
    def last_checkpoint(self) -> Path | None:
        """What a fit under the same settings left when it was stopped, unless it is to be overwritten."""
        path = self.folder / "checkpoints" / "last.ckpt"
        if self.overwrite or not path.is_file() or not zipfile.is_zipfile(path):
            return None
        return path if self.made_under()["digest"] == self.digest() else None

    def made_under(self) -> dict[str, Any]:
        """The settings that the folder's content was made under, and their digest; None each if nothing says."""
        path = self.folder / CONDITION_FILE
        return {"digest": None, "settings": None} | (read_condition(path) if path.exists() else {})

    @property
    def log_file(self) -> Path:
        """Where its output goes where several conditions run at once."""
        return self.experiment / "logs" / f"{self.dataset}-{self.arm}-seed{self.seed}.log"

    @property
    def error_file(self) -> Path:
        """Where the traceback of a failure goes: outside the condition's folder, which may be what failed."""
        return self.experiment / "errors" / f"{self.dataset}-{self.arm}-seed{self.seed}.txt"

    def settings(self) -> dict[str, Any]:
        """What decides the condition's result: the content of its configurations, and what overrides them."""
        return {
            "configs": [yaml.safe_load(path.read_text(encoding="utf-8")) for path in self.configs],
            "overrides": list(self.args),
        }

    def digest(self) -> str:
        """SHA-256 of the settings."""
        return settings_digest(self.settings())


def try_condition(condition: Condition, verbose: bool = False) -> str | None:
    """Runs a condition; returns why it failed. A fault of ours leaves its traceback in the experiment's folder."""
    try:
        run_condition(condition, verbose)
    except Exception as error:  # one condition's fault must not cost the others; it is told, kept and counted
        mistake = user_mistake(error)
        if mistake:
            return str(mistake)
        return f"{type(error).__name__}: {error} ({_keep_traceback(condition)})"
    finally:
        gc.collect()
    return None


def _keep_traceback(condition: Condition) -> str:
    try:
        write_text(condition.error_file, traceback.format_exc())
    except OSError as unwritable:
        traceback.print_exc()
        return f"its traceback, above, could not be written: {unwritable}"
    return f"traceback: {condition.error_file}"


def run_condition(condition: Condition, verbose: bool = False) -> None:
    """Fits and validates one condition by the same code as `influence fit` and `influence validate`.

    A fit that was stopped goes on from its last checkpoint. Unless `verbose`, what Lightning tells of a run is left
    out.
    """
    from lightning_app.run.cli import InfluenceCLI

    last = condition.last_checkpoint
    if not last and condition.folder.exists():
        (condition.folder / METRICS_FILE).unlink(missing_ok=True)  # first: a half deleted folder is not complete
        shutil.rmtree(condition.folder)
    settings = {"digest": condition.digest(), "settings": condition.settings()}
    write_json(condition.folder / CONDITION_FILE, settings)
    with nullcontext() if verbose else quiet():
        resume = [f"--ckpt_path={last}"] if last else []
        cli = InfluenceCLI(["fit", *command_line(condition), *resume])
        checkpoints = Path(cli.trainer.default_root_dir) / "checkpoints"
        best = checkpoints / "best.ckpt"
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=best, weights_only=True, verbose=False)
    (checkpoints / "last.ckpt").unlink(missing_ok=True)


def command_line(condition: Condition) -> list[str]:
    """The words after `influence fit` that run this condition alone."""
    experiment = condition.experiment
    words = [word for path in condition.configs for word in ("-c", str(path))]
    words += [f"--outputs={experiment.parent}", f"--experiment={experiment.name}"]
    words += [f"--dataset={condition.dataset}", f"--arm={condition.arm}"]
    words += [f"--seed_everything={condition.seed}", *condition.args]
    return [*words, f"--trainer.enable_progress_bar={str(sys.stderr.isatty()).lower()}"]


EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # rows are tokenised beforehand: a worker would have nothing to do
    ".*smaller than the logging interval.*",
    ".*module\\(s\\) in eval mode at the start of training.*",  # a frozen backbone
    ".*this fit will run with no optimizer.*",  # `tune: none`
    ".*Checkpoint directory .* exists and is not empty.*",  # a fit that goes on
    ".*treespec, LeafSpec.*",
    ".*is_gradient_checkpointing.*",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves out what Lightning tells of each run; warnings of ours and of torch stay."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "transformers")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
