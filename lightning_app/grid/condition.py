"""One condition: a dataset, an arm and a seed, run by the same code as `influence fit` and `influence validate`."""

import gc
import shutil
import sys
import traceback
import zipfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_app.errors import UsageError, user_mistake
from lightning_app.results.files import METRICS_FILE, read_json, write_json, write_text
from lightning_app.results.records import read_condition, read_metrics
from lightning_app.results.settings import settings_digest
from lightning_app.run.allocator import return_freed_memory
from lightning_app.run.configs import read_config
from lightning_app.run.quiet import quiet

if TYPE_CHECKING:
    from modules import Caches

CONDITION_FILE = "condition.json"


@dataclass(frozen=True)
class Condition:
    """One dataset, arm and seed, and the command line that runs it.

    Attributes:
        dataset: The name of the dataset.
        arm: The label of the arm.
        seed: The seed of the run.
        folder: Where its results go.
        args: Options that override the configurations.
        configs: Configuration files, the later over the earlier.
        overwrite: Whether to run it again if it is complete.
        starts_from: The label of the arm whose head it starts from; None if it starts from a new head.
        typed: What the user typed for the dataset and for the arm.
        names: Options that name the dataset and the arm.
    """

    dataset: str
    arm: str
    seed: int
    folder: Path
    args: tuple[str, ...]
    configs: tuple[Path, ...]
    overwrite: bool = False
    starts_from: str | None = None
    typed: tuple[str, str] = ("", "")
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.dataset}/{self.arm}/seed{self.seed}"

    @property
    def experiment(self) -> Path:
        """The folder of its experiment."""
        return self.folder.parents[2]

    @property
    def places(self) -> tuple[str, ...]:
        """What a run writes in that folder: results, its output, and the traceback of a failure."""
        return tuple(
            path.relative_to(self.experiment).as_posix() for path in (self.folder, self.log_file, self.error_file)
        )

    def begins_from(self, other: "Condition") -> bool:
        """Return whether this condition starts from the head that the other one trains."""
        return (self.dataset, self.starts_from, self.seed) == (other.dataset, other.arm, other.seed)

    @property
    def start(self) -> str | None:
        """The file of that head, from the experiment's folder."""
        return f"{self.dataset}/{self.starts_from}/seed{self.seed}/start.safetensors" if self.starts_from else None

    @property
    def is_complete(self) -> bool:
        """Whether its metrics, which are written last, exist and are valid."""
        try:
            return bool(read_metrics(self.folder / METRICS_FILE))
        except (UsageError, FileNotFoundError, NotADirectoryError):
            return False

    @property
    def last_checkpoint(self) -> Path | None:
        """The checkpoint of a stopped fit under the same settings, unless the condition is to be overwritten."""
        path = self.folder / "checkpoints" / "last.ckpt"
        if self.overwrite or not path.is_file() or not zipfile.is_zipfile(path):
            return None
        return path if self.made_under()["digest"] == self.digest() else None

    def made_under(self) -> dict[str, Any]:
        """Return the settings of the run in the folder, and their digest; both None if no experiment made it.

        Raises:
            UsageError: If an earlier version made it, whose settings cannot be compared.
        """
        path = self.folder / CONDITION_FILE
        if path.exists() and "typed" not in read_json(path):
            raise UsageError(
                f"{self.folder} was made by an earlier version, whose results are not mixed with new ones. Give this "
                "experiment another --name, or --overwrite what is there."
            )
        return {"digest": None, "settings": None} | (read_condition(path) if path.exists() else {})

    @property
    def log_file(self) -> Path:
        """Where its output goes if several conditions run at the same time."""
        return self.experiment / "logs" / f"{self.dataset}-{self.arm}-seed{self.seed}.log"

    @property
    def error_file(self) -> Path:
        """Where the traceback of a failure goes: outside the condition's folder, which may be the cause."""
        return self.experiment / "errors" / f"{self.dataset}-{self.arm}-seed{self.seed}.txt"

    def settings(self) -> dict[str, Any]:
        """Return the content of the configurations, and the options that override them."""
        return {"configs": [read_config(path) for path in self.configs], "overrides": list(self.args)}

    def digest(self) -> str:
        """Return the SHA-256 of the settings that can change the result."""
        return settings_digest(self.settings())

    def record(self) -> dict[str, Any]:
        """Return the content of `condition.json`: the settings, and what the user typed, for the report's commands."""
        typed = dict(zip(("dataset", "arm"), self.typed, strict=True))
        return {"digest": self.digest(), "settings": self.settings(), "typed": typed}


def try_condition(condition: Condition, caches: "Caches | None" = None, verbose: bool = False) -> str | None:
    """Run a condition and return why it failed. The traceback of a bug is written to the experiment's folder."""
    try:
        run_condition(condition, caches, verbose)
    except Exception as error:  # one failed condition must not stop the others; it is reported, kept and counted
        mistake = user_mistake(error)
        if mistake:
            return str(mistake)
        return f"{type(error).__name__}: {error} ({_keep_traceback(condition)})"
    finally:
        gc.collect()
        return_freed_memory()
    return None


def _keep_traceback(condition: Condition) -> str:
    try:
        write_text(condition.error_file, traceback.format_exc())
    except OSError as unwritable:
        traceback.print_exc()
        return f"its traceback, above, could not be written: {unwritable}"
    return f"traceback: {condition.error_file}"


def run_condition(condition: Condition, caches: "Caches | None" = None, verbose: bool = False) -> None:
    """Fit and validate one condition by the same code as `influence fit` and `influence validate`.

    A fit that was stopped resumes from its last checkpoint. Unless `verbose`, Lightning's messages are not printed.
    """
    from lightning_app.run.cli import InfluenceCLI

    last = condition.last_checkpoint
    if not last and condition.folder.exists():
        (condition.folder / METRICS_FILE).unlink(missing_ok=True)  # a partly deleted folder must not look complete
        shutil.rmtree(condition.folder)
    write_json(condition.folder / CONDITION_FILE, condition.record())
    with nullcontext() if verbose else quiet():
        resume = [f"--ckpt_path={last}"] if last else []
        cli = InfluenceCLI(["fit", "--overwrite", *command_line(condition), *resume], caches=caches)
        checkpoints = Path(cli.trainer.default_root_dir) / "checkpoints"
        best = checkpoints / "best.ckpt"
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=best, weights_only=True, verbose=False)
    (checkpoints / "last.ckpt").unlink(missing_ok=True)


def command_line(condition: Condition) -> list[str]:
    """Return the options of `influence fit` that run this condition alone."""
    experiment = condition.experiment
    words = [word for path in condition.configs for word in ("-c", str(path))]
    words += [f"--outputs={experiment.parent}", f"--experiment={experiment.name}"]
    words += [*condition.args, *condition.names, f"--seed_everything={condition.seed}"]
    return [*words, f"--trainer.enable_progress_bar={str(sys.stderr.isatty()).lower()}"]
