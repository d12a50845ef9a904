"""`influence experiment`: every condition of a grid dataset x arm x seed, then their comparison."""

import gc
import logging
import re
import shutil
import sys
import traceback
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml
from filelock import FileLock, Timeout
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from lightning_app.configs import config_file, configs_folder, find_configs
from lightning_app.errors import UsageError, user_mistake
from lightning_app.files import METRICS_FILE, check_name, read_json, write_json, write_text
from lightning_app.records import read_condition, read_metrics, settings_digest

CONDITION_FILE = "condition.json"
QUICK_SIZE = 50


@dataclass(frozen=True)
class Condition:
    """One dataset, arm and seed, and the words of the command line that run it."""

    dataset: str
    arm: str
    seed: int
    folder: Path
    args: tuple[str, ...]
    configs: tuple[Path, ...]

    def __str__(self) -> str:
        return f"{self.dataset}/{self.arm}/seed{self.seed}"

    @property
    def is_complete(self) -> bool:
        """Whether its metrics, which are written last, are there and whole."""
        try:
            return bool(read_metrics(self.folder / METRICS_FILE))
        except (UsageError, FileNotFoundError, NotADirectoryError):
            return False

    @property
    def last_checkpoint(self) -> Path | None:
        """What a fit under the same settings left when it was stopped."""
        path = self.folder / "checkpoints" / "last.ckpt"
        return (
            path
            if path.is_file() and zipfile.is_zipfile(path) and self.made_under()["digest"] == self.digest()
            else None
        )

    def made_under(self) -> dict[str, Any]:
        """The settings that the folder's content was made under, and their digest; None each if nothing says."""
        path = self.folder / CONDITION_FILE
        return {"digest": None, "settings": None} | (read_condition(path) if path.exists() else {})

    @property
    def error_file(self) -> Path:
        """Where the traceback of a failure goes: outside the condition's folder, which may be what failed."""
        return self.folder.parents[2] / "errors" / f"{self.dataset}-{self.arm}-seed{self.seed}.txt"

    def settings(self) -> dict[str, Any]:
        """What decides the condition's result: the content of its configurations, and what overrides them."""
        return {"configs": [yaml.safe_load(path.read_text()) for path in self.configs], "overrides": list(self.args)}

    def digest(self) -> str:
        """SHA-256 of the settings."""
        return settings_digest(self.settings())


def build_parser() -> ArgumentParser:
    """The options of `influence experiment`."""
    parser = ArgumentParser(
        prog="influence experiment",
        description="Runs every condition of datasets x arms x seeds. What is complete is not run again; a condition "
        "that fails does not stop the others; missing baseline starts are made.",
        default_config_files=[str(configs_folder() / "experiment.yaml")],
        exit_on_error=False,
    )
    add = parser.add_argument
    add("-c", "--config", action=ActionConfigFile, help="YAML file with any of these options.")
    add("--name", type=str | None, default=None, help="Results go to <outputs>/<name>; default experiment-<backbone>.")
    add("--outputs", type=str, default="outputs", help="Folder of all results.")
    add("--backbone", type=str, default="Qwen/Qwen2-0.5B", help="Hub id, local folder, or all-MiniLM-L6-v2.")
    add("--datasets", type=list[str], metavar="NAME ...", default=[], help="Names of files in configs/data.")
    add("--arms", type=list[str], metavar="NAME ...", default=[], help="Names of files in configs/arms.")
    add("--seeds", type=list[int], metavar="K ...", default=[0], help="Seeds: of splits, head and batch order.")
    add("--quick", action="store_true", help=f"{QUICK_SIZE} samples a split: tries the pipeline, measures nothing.")
    add("--accelerator", type=str | None, default=None, help="Name of a file in configs/accelerator: cpu, gpu, tpu.")
    add(
        "--set",
        type=list[str],
        default=[],
        metavar="[ARM:]KEY=VALUE ...",
        help="Sets a key of every condition's config, or of one arm's: influence:model.fraction=0.01. Adds to what a "
        "config file sets; of two values for one key the later holds.",
    )
    add("--overwrite", action="store_true", help="Run complete conditions again, even under other settings.")
    return parser


def parse_options(argv: list[str]) -> Namespace:
    """The options of the command line, where lists are values separated by spaces."""
    options = build_parser().parse_args(find_configs(_join_lists(argv)))
    for key in ("outputs", "backbone"):
        if options[key] is None:
            raise UsageError(f"--{key} is null, but must have a value. Leave it out for its default.")
    return options


def _join_lists(words: list[str]) -> list[str]:
    """Writes `--datasets a b` as `--datasets=[a, b]`, and `--set a b` so that both are appended to a config's."""
    joined: list[str] = []
    rest = list(words)
    while rest:
        option, _, value = (word := rest.pop(0)).partition("=")
        if option not in ("--datasets", "--arms", "--seeds", "--set") or value.startswith("["):
            joined.append(word)
            continue
        values = [value] if value else []
        while rest and not re.match(r"-(?!\d)", rest[0]):  # -1 is a value
            values.append(rest.pop(0))
        if not values:
            raise UsageError(f"{option} is empty: give at least one value.")
        joined += (
            [f"{option}+={value}" for value in values] if option == "--set" else [f"{option}=[{', '.join(values)}]"]
        )
    return joined


def experiment_folder(options: Namespace) -> Path:
    """`<outputs>/<name>`; without a name it is called after the backbone, and --quick has folders of its own."""
    name = options.name if options.name is not None else f"experiment-{Path(options.backbone).name}"
    check_name("--name", name)
    return Path(options.outputs) / (f"{name}-quick" if options.quick else name)


def build_conditions(options: Namespace, folder: Path) -> list[Condition]:
    """The grid, each dataset's baseline first: the other arms begin from its head.

    Raises:
        UsageError: On an unknown dataset, arm or accelerator, or a list that is empty.
    """
    for key in ("datasets", "arms", "seeds"):
        if not getattr(options, key):
            raise UsageError(f"--{key} is empty: give at least one value.")
    arms = sorted(dict.fromkeys(["baseline", *options.arms]), key=lambda arm: arm != "baseline")
    set_arms = [arm for arm, _ in map(_split_assignment, options.set) if arm]
    for kind, names in {"data": options.datasets, "arms": [*arms, *set_arms]}.items():
        for name in names:
            config_file(kind, name)
    return [
        _condition(options, folder, dataset, arm, seed)
        for dataset in dict.fromkeys(options.datasets)
        for seed in dict.fromkeys(options.seeds)
        for arm in arms
    ]


def _condition(options: Namespace, folder: Path, dataset: str, arm: str, seed: int) -> Condition:
    configs = [configs_folder() / "base.yaml", config_file("data", dataset), config_file("arms", arm)]
    if options.accelerator:
        configs.append(config_file("accelerator", options.accelerator))
    args = [f"--model.backbone={options.backbone}"]
    if options.quick:
        args += [f"--data.{split}_size={QUICK_SIZE}" for split in ("head_init", "train", "dev", "eval")]
    args += [f"--{setting}" for only, setting in map(_split_assignment, options.set) if only in ("", arm)]
    return Condition(dataset, arm, seed, folder / dataset / arm / f"seed{seed}", tuple(args), tuple(configs))


def _split_assignment(assignment: str) -> tuple[str, str]:
    """`arm:key=value` or `key=value`, as the arm (or nothing) and `key=value`.

    Raises:
        UsageError: If there is no `=`.
    """
    key, equals, value = assignment.partition("=")
    if not equals:
        raise UsageError(f"--set {assignment!r} has no value: write KEY=VALUE, for example data.max_length=64.")
    arm, _, key = key.removeprefix("--").rpartition(":")
    return arm, f"{key}={value}"


def check_settings(conditions: list[Condition]) -> None:
    """Refuses to mix results of different settings in one folder.

    Raises:
        UsageError: If a complete condition was made under other settings.
    """
    for condition in conditions:
        made = condition.made_under()
        if condition.is_complete and made["digest"] != condition.digest():
            raise UsageError(
                f"{condition.folder} is complete, but was made under other settings: {_difference(made, condition)}. "
                "Give this experiment another --name, or --overwrite what is there."
            )


def _difference(made: dict[str, Any], condition: Condition) -> str:
    """What tells the settings of a complete condition from those asked for."""
    if made["settings"] is None:
        return f"it has no {CONDITION_FILE}, so no experiment made it"
    found, asked = made["settings"]["overrides"], list(condition.args)
    return f"it had {found}, asked for is {asked}" if found != asked else "its YAML files have changed"


def check_inputs(conditions: list[Condition]) -> None:
    """Builds every arm with its Trainer and prepares every dataset, so that mistakes are found before any training.

    Raises:
        UsageError, BackboneError, DataError, MaskingError, OptionError: If a condition could not be run.
    """
    from lightning_app.cli import InfluenceCLI, PrepareData

    with quiet():
        for condition in {condition.arm: condition for condition in reversed(conditions)}.values():
            trainer = InfluenceCLI(command_line(condition), run=False).trainer
            if trainer.world_size > 1:
                raise UsageError(
                    f"Arm {condition.arm} asks for {trainer.num_devices} devices on {trainer.num_nodes} nodes. An "
                    "experiment runs each condition on one: leave trainer.devices and trainer.num_nodes at 1."
                )
            gc.collect()
        for condition in {(condition.dataset, condition.seed): condition for condition in conditions}.values():
            PrepareData(command_line(condition))


def run_conditions(conditions: list[Condition], todo: list[Condition], overwrite: bool = False) -> dict[Condition, str]:
    """Runs, in order, the conditions that are to do, and says of the others that they are complete.

    Returns:
        The reason of each failure; empty if all are complete.
    """
    failures: dict[Condition, str] = {}
    for number, condition in enumerate(conditions, 1):
        label = f"[{number}/{len(conditions)}] {condition}"
        if condition not in todo:
            print(f"{label}: complete, {_headline(condition)}", flush=True)
            continue
        resumes = condition.last_checkpoint and not overwrite
        print(f"{label}: {'going on after its last whole epoch' if resumes else 'running'}", flush=True)
        start = perf_counter()
        failure = _try(condition, overwrite)
        if failure:
            failures[condition] = failure
            print(f"{label}: FAILED, the reason is told at the end", flush=True)
        else:
            print(f"{label}: {_headline(condition)} in {perf_counter() - start:.0f} s", flush=True)
    return failures


def _try(condition: Condition, overwrite: bool) -> str | None:
    """Runs a condition; returns why it failed. A fault of ours leaves its traceback in the experiment's folder."""
    try:
        run_condition(condition, overwrite)
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


def run_condition(condition: Condition, overwrite: bool = False) -> None:
    """Fits and validates one condition by the same code as `influence fit` and `influence validate`.

    A fit that was stopped goes on after its last whole epoch, unless it is to be overwritten.
    """
    from lightning_app.cli import InfluenceCLI

    last = None if overwrite else condition.last_checkpoint
    if not last and condition.folder.exists():
        (condition.folder / METRICS_FILE).unlink(missing_ok=True)  # first: a half deleted folder is not complete
        shutil.rmtree(condition.folder)
    settings = {"digest": condition.digest(), "settings": condition.settings()}
    write_json(condition.folder / CONDITION_FILE, settings)
    with quiet():
        resume = [f"--ckpt_path={last}"] if last else []
        cli = InfluenceCLI(["fit", *command_line(condition), *resume])
        checkpoints = Path(cli.trainer.default_root_dir) / "checkpoints"
        best = checkpoints / "best.ckpt"
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=best, weights_only=True, verbose=False)
    (checkpoints / "last.ckpt").unlink(missing_ok=True)


def command_line(condition: Condition) -> list[str]:
    """The words after `influence fit` that run this condition alone."""
    experiment = condition.folder.parents[2]
    words = [word for path in condition.configs for word in ("-c", str(path))]
    words += [f"--outputs={experiment.parent}", f"--experiment={experiment.name}"]
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


def _headline(condition: Condition) -> str:
    metrics = read_json(condition.folder / METRICS_FILE)
    return f"accuracy {metrics['accuracy']:.1%}, macro-F1 {metrics['macro_f1']:.1%}"


def main(argv: list[str]) -> int:
    """Runs an experiment; 0 if every condition is complete, 1 if one failed."""
    options = parse_options(argv)
    folder = experiment_folder(options)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            return _run(options, folder)
    except Timeout:
        raise UsageError(
            f"Another experiment is running in {folder}. Wait for it, or give this one a --name."
        ) from None


def _run(options: Namespace, folder: Path) -> int:
    conditions = build_conditions(options, folder)
    if not options.overwrite:
        check_settings(conditions)
    todo = [condition for condition in conditions if options.overwrite or not condition.is_complete]
    print(f"{folder}: {len(conditions)} conditions, {len(conditions) - len(todo)} of them complete", flush=True)
    if todo:
        check_inputs(todo)
    failures = run_conditions(conditions, todo, options.overwrite)
    for condition, reason in failures.items():
        print(f"failed: {condition}: {reason}", file=sys.stderr, flush=True)
    if any(condition.is_complete for condition in conditions):
        from lightning_app.report import write_report  # the plotting library is loaded when there is something to plot

        print(f"\n{write_report(folder)}")
    return 1 if failures else 0
