"""`influence experiment`: every condition of a grid dataset x arm x seed, then their comparison."""

import difflib
import gc
import hashlib
import json
import logging
import shutil
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from lightning_app.errors import UsageError, user_mistake
from lightning_app.files import METRICS_FILE, read_json, write_json, write_text

CONDITION_FILE = "condition.json"
QUICK_SIZE = 50


def configs_folder() -> Path:
    """The shipped configurations: beside the packages in a checkout, inside this package in an installed wheel."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


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
        """Whether its metrics, which are written last, are there."""
        return (self.folder / METRICS_FILE).is_file()

    @property
    def error_file(self) -> Path:
        """Where the traceback of a failure goes: outside the condition's folder, which may be what failed."""
        return self.folder.parents[2] / "errors" / f"{self.dataset}-{self.arm}-seed{self.seed}.txt"

    def settings(self) -> dict[str, Any]:
        """What decides the condition's result: the content of its configurations, and what overrides them."""
        return {"configs": [yaml.safe_load(path.read_text()) for path in self.configs], "overrides": list(self.args)}

    def digest(self) -> str:
        """SHA-256 of the settings."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()


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
    add("--datasets", type=str, nargs="+", default=[], help="Names of files in configs/data.")
    add("--arms", type=str, nargs="+", default=[], help="Names of files in configs/arms.")
    add("--seeds", type=int, nargs="+", default=[0], help="Seeds: of splits, head and batch order.")
    add("--quick", action="store_true", help=f"{QUICK_SIZE} samples a split: tries the pipeline, measures nothing.")
    add("--calibration_samples", type=int | None, default=None, help="Rows for the masks' gradient; all if not given.")
    add("--accelerator", type=str | None, default=None, help="Name of a file in configs/accelerator: cpu, gpu, tpu.")
    add(
        "--set",
        type=str,
        nargs="+",
        default=[],
        metavar="[ARM:]KEY=VALUE",
        help="Sets a key of every condition's config, or of one arm's: influence:model.fraction=0.01",
    )
    add("--overwrite", action="store_true", help="Run complete conditions again, even under other settings.")
    return parser


def config_file(kind: str, name: str) -> Path:
    """The file `configs/<kind>/<name>.yaml`.

    Raises:
        UsageError: If there is none; lists what there is, near misses first.
    """
    folder = configs_folder() / kind
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name in names:
        return folder / f"{name}.yaml"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    what = {"data": "dataset", "arms": "arm"}.get(kind, kind)
    raise UsageError(f"Unknown {what} {name!r}. {hint}There are: {', '.join(names)}.")


def experiment_folder(options: Namespace) -> Path:
    """`<outputs>/<name>`; without a name it is called after the backbone, and --quick has folders of its own."""
    name = options.name or f"experiment-{Path(options.backbone).name}"
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
    arm_file = config_file("arms", arm)
    configs = [configs_folder() / "base.yaml", config_file("data", dataset), arm_file]
    if options.accelerator:
        configs.append(config_file("accelerator", options.accelerator))
    args = [f"--model.backbone={options.backbone}"]
    if options.quick:
        args += [f"--data.{split}_size={QUICK_SIZE}" for split in ("head_init", "train", "dev", "eval")]
    if options.calibration_samples and "Influence" in yaml.safe_load(arm_file.read_text())["model"]["class_path"]:
        args.append(f"--model.num_samples={options.calibration_samples}")
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
        if not condition.is_complete or not (condition.folder / CONDITION_FILE).is_file():
            continue
        made = read_json(condition.folder / CONDITION_FILE)
        if made.get("digest") != condition.digest():
            found, asked = made.get("settings", {}).get("overrides"), list(condition.args)
            difference = f"it had {found}, asked for is {asked}" if found != asked else "its YAML files have changed"
            raise UsageError(
                f"{condition.folder} is complete, but was made under other settings: {difference}. "
                "Give this experiment another --name, or --overwrite what is there."
            )


def check_inputs(conditions: list[Condition]) -> None:
    """Parses every arm, prepares every dataset and looks for the backbone: mistakes are found before any training."""
    from lightning_app.cli import CheckCLI

    one_a_dataset = {condition.dataset: condition for condition in reversed(conditions)}
    one_an_arm = {condition.arm: condition for condition in reversed(conditions)}
    for condition in conditions:
        if condition is one_a_dataset[condition.dataset] or condition is one_an_arm[condition.arm]:
            with quiet():
                CheckCLI(command_line(condition)).check(prepare=condition is one_a_dataset[condition.dataset])


def run_conditions(conditions: list[Condition], todo: list[Condition]) -> dict[Condition, str]:
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
        print(f"{label}: running", flush=True)
        start = perf_counter()
        failure = _try(condition)
        if failure:
            failures[condition] = failure
            print(f"{label}: FAILED, the reason is told at the end", flush=True)
        else:
            print(f"{label}: {_headline(condition)} in {perf_counter() - start:.0f} s", flush=True)
    return failures


def _try(condition: Condition) -> str | None:
    """Runs a condition; returns why it failed. A fault of ours leaves its traceback in the condition's folder."""
    try:
        run_condition(condition)
    except Exception as error:  # one condition's fault must not cost the others; it is told, kept and counted
        mistake = user_mistake(error)
        if mistake:
            return str(mistake)
        write_text(condition.error_file, traceback.format_exc())
        return f"{type(error).__name__}: {error} (traceback: {condition.error_file})"
    finally:
        gc.collect()
    return None


def run_condition(condition: Condition) -> None:
    """Fits and validates one condition by the same code as `influence fit` and `influence validate`."""
    from lightning_app.cli import InfluenceCLI

    if condition.folder.exists():
        shutil.rmtree(condition.folder)  # what a killed run left; the seed makes the same again
    settings = {"digest": condition.digest(), "settings": condition.settings()}
    write_json(condition.folder / CONDITION_FILE, settings)
    with quiet():
        cli = InfluenceCLI(["fit", *command_line(condition)])
        best = Path(cli.trainer.default_root_dir) / "checkpoints" / "best.ckpt"
        cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=best, weights_only=True, verbose=False)


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
    options = build_parser().parse_args(argv)
    folder = experiment_folder(options)
    conditions = build_conditions(options, folder)
    if not options.overwrite:
        check_settings(conditions)
    todo = [condition for condition in conditions if options.overwrite or not condition.is_complete]
    print(f"{folder}: {len(conditions)} conditions, {len(conditions) - len(todo)} of them complete", flush=True)
    if todo:
        check_inputs(todo)
    failures = run_conditions(conditions, todo)
    if any(condition.is_complete for condition in conditions):
        from lightning_app.report import write_report  # the plotting library is loaded when there is something to plot

        print(f"\n{write_report(folder)}")
    for condition, reason in failures.items():
        print(f"failed: {condition}: {reason}", file=sys.stderr)
    return 1 if failures else 0
