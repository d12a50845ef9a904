"""`influence experiment`: every condition of a grid dataset x arm x seed, then their comparison."""

import gc
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, cast

from filelock import FileLock, Timeout
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from tqdm.auto import tqdm

from lightning_app.errors import UsageError, user_mistake
from lightning_app.grid.condition import CONDITION_FILE, Condition, command_line
from lightning_app.grid.forecast import Load, describe, load_of, rates_of, work_of
from lightning_app.grid.schedule import Plan, Workers, followers, run_all
from lightning_app.grid.workers import InProcess, Processes, call_in_process, devices_of
from lightning_app.messages import parse
from lightning_app.results.files import METRICS_FILE, check_name, make_folder, read_json
from lightning_app.results.identity import Arm
from lightning_app.results.settings import describe_difference
from lightning_app.run.allocator import return_freed_memory
from lightning_app.run.configs import (
    GridEntry,
    choose_arm,
    config_file,
    configs_folder,
    find_arms,
    find_configs,
    find_datasets,
)
from lightning_app.run.overwrite import is_complete
from lightning_app.run.quiet import quiet

QUICK_SIZE = 50

PLACING = re.compile(r"(outputs|experiment|dataset|arm\.(name|overlay|starts_from)|seed_everything)=")
"""Options of `influence fit` that an experiment sets itself: they place a condition in the grid."""


def build_parser() -> ArgumentParser:
    """Return the options of `influence experiment`."""
    parser = ArgumentParser(
        prog="influence experiment",
        description="Runs every condition of datasets x arms x seeds. Complete conditions are not run again; a "
        "condition that fails stops only those that start from it; arms that others start from are added.",
        default_config_files=[str(configs_folder() / "experiment.yaml")],
        exit_on_error=False,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-c", "--config", action=ActionConfigFile, help="YAML file with any of these options.")
    add("--name", type=str | None, default=None, help="Folder in <outputs>; default experiment-<backbone>.")
    add("--outputs", type=str, default="outputs", help="Folder of all results.")
    _add_grid_options(parser)
    _add_engine_options(parser)
    add(
        "--set",
        type=list[str],
        default=[],
        metavar="[ARM:]KEY=VALUE ...",
        help="Value of a key for every condition, or for one arm: influence:model.masking.fraction=0.01. Values of a "
        "config file are kept; the last value of a key is used.",
    )
    add("--dry-run", action="store_true", help="Check everything, print what will run and what it takes, and stop.")
    add("--overwrite", action="store_true", help="Run complete conditions again, also under other settings.")
    return parser


def _add_grid_options(parser: ArgumentParser) -> None:
    """Add what is run."""
    add = parser.add_argument
    add("--backbone", type=str, default="Qwen/Qwen2-0.5B", help="Hub id, local folder, GGUF file, or all-MiniLM-L6-v2.")
    add("--tokenizer", type=str | None, default=None, help="Hub id, folder or GGUF file; default the backbone's own.")
    add("--datasets", type=list[str], metavar="NAME ...", default=[], help="Names of files in configs/data, or paths.")
    add(
        "--arms",
        type=list[str],
        metavar="NAME ...",
        default=[],
        help="Names of files in configs/arms, or paths; NAME+OVERLAY lays a file in configs/tune over it.",
    )
    add("--seeds", type=list[int], metavar="K ...", default=[0], help="Seeds of splits, head and batch order.")
    add("--quick", action="store_true", help=f"{QUICK_SIZE} samples per split: tests the pipeline, not the arms.")


def _add_engine_options(parser: ArgumentParser) -> None:
    """Add what it is run on."""
    add = parser.add_argument
    add("--accelerator", type=str | None, default=None, help="Name of a file in configs/accelerator: cpu, gpu, tpu.")
    add(
        "--devices",
        type=PositiveInt,
        default=1,
        help="Number of cores, GPUs or TPU chips; each runs one condition at a time.",
    )
    add("--engine", type=Literal["local", "ray"], default="local", help="Run here, or on a Ray cluster.")
    add("--address", type=str | None, default=None, help="Of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT.")
    add("--num_cpus", type=PositiveInt, default=1, help="CPU cores of each condition on a Ray cluster.")
    add(
        "--storage",
        type=str | None,
        default=None,
        metavar="URL",
        help="Folder for the results of a Ray cluster's nodes, s3://bucket/folder or another URL for fsspec, if not "
        "all nodes see --outputs. Results are copied from there to --outputs.",
    )


def parse_options(argv: list[str]) -> Namespace:
    """Parse the options of the command line, in which the values of a list are separated by spaces."""
    options = parse(build_parser(), find_configs(_join_lists(argv)))
    for key in ("outputs", "backbone"):
        if options[key] is None:
            raise UsageError(f"--{key} is null, but must have a value. Leave it out for its default.")
    return options


def _join_lists(words: list[str]) -> list[str]:
    """Write `--datasets a b` as `--datasets=[a, b]`, and `--set a b` as two values appended to those of a config."""
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


def check_engine(options: Namespace) -> None:
    """Refuse options that would have no effect.

    Raises:
        UsageError: If an option belongs to another engine.
    """
    idle = ["devices"] if options.engine == "ray" else ["address", "num_cpus", "storage"]
    for name in idle:
        if getattr(options, name) != build_parser().get_defaults()[name]:
            raise UsageError(f"--{name} has no meaning with --engine {options.engine}. Leave it out.")


def experiment_folder(options: Namespace) -> Path:
    """Return `<outputs>/<name>`; the default name follows from the backbone, and `--quick` adds `-quick`."""
    name = options.name if options.name is not None else f"experiment-{Path(options.backbone).name}"
    check_name("--name", name)
    return Path(options.outputs) / (f"{name}-quick" if options.quick else name)


def build_conditions(options: Namespace, folder: Path) -> list[Condition]:
    """Return the grid, each arm after the one that it starts from, which is added where it is missing.

    Raises:
        UsageError: On an unknown dataset, arm or accelerator, two of one name, an empty list, or an option of `--set`
            that cannot be set.
    """
    for key in ("datasets", "arms", "seeds"):
        if not getattr(options, key):
            raise UsageError(f"--{key} is empty: give at least one value.")
        if repeated := [value for value, times in Counter(getattr(options, key)).items() if times > 1]:
            raise UsageError(f"--{key} has {repeated[0]} more than once. Give each value once.")
    datasets, arms = find_datasets(options.datasets), find_arms(options.arms)
    for arm, assignment in map(_split_assignment, options.set):
        if arm and arm not in arms:
            choose_arm(arm)  # which refuses a name that no arm has
            raise UsageError(
                f"--set {arm}:{assignment} is for an arm that is not run. The arms of this experiment are "
                f"{', '.join(arms)}. Add it to --arms, or leave it out."
            )
        if PLACING.match(assignment):
            raise UsageError(
                f"--set {assignment}: an experiment has --datasets, --arms, --seeds, --outputs and --name for this."
            )
    return [
        _condition(options, folder, dataset, arm, seed)
        for dataset in datasets.values()
        for seed in options.seeds
        for arm in arms.values()
    ]


def _condition(options: Namespace, folder: Path, dataset: GridEntry, choice: GridEntry, seed: int) -> Condition:
    arm = cast(Arm, choice.arm)
    configs = [configs_folder() / "base.yaml", *dataset.files, *choice.files]
    if options.accelerator:
        configs.append(config_file("accelerator", options.accelerator))
    args = [f"--model.backbone={options.backbone}"]
    args += [f"--tokenizer={options.tokenizer}"] if options.tokenizer else []
    if options.quick:
        args += [f"--data.{split}_size={QUICK_SIZE}" for split in ("head_init", "train", "dev", "eval")]
    args += [f"--{setting}" for only, setting in map(_split_assignment, options.set) if only in ("", arm.label)]
    names = [f"--dataset={dataset.name}", f"--arm.name={arm.name}"]
    return Condition(
        dataset.name,
        arm.label,
        seed,
        folder / dataset.name / arm.label / f"seed{seed}",
        tuple(args),
        tuple(configs),
        options.overwrite,
        arm.starts_from,
        (dataset.argument, choice.argument),
        (*names, f"--arm.overlay={arm.overlay}") if arm.overlay else tuple(names),
    )


def _split_assignment(assignment: str) -> tuple[str, str]:
    """Split `arm:key=value` into the arm and `key=value`; without an arm the first is empty.

    Raises:
        UsageError: If there is no `=`.
    """
    key, equals, value = assignment.partition("=")
    if not equals:
        raise UsageError(f"--set {assignment!r} has no value: write KEY=VALUE, for example data.max_length=64.")
    arm, _, key = key.removeprefix("--").rpartition(":")
    return arm, f"{key}={value}"


def check_settings(conditions: list[Condition]) -> None:
    """Refuse to mix results of different settings in one folder.

    Raises:
        UsageError: If a complete condition was made under other settings, or a folder by an earlier version. If the
            settings do not exist or are out of range, it is they that are refused.
    """
    for condition in conditions:
        made = condition.made_under()
        fitted_alone = made["digest"] is None and is_complete("fit", condition.folder)
        if (condition.is_complete or fitted_alone) and made["digest"] != condition.digest():
            check_options(conditions)
            raise UsageError(
                f"{condition.folder} is complete, but was made under other settings: {_difference(made, condition)}. "
                "Give this experiment another --name, or --overwrite what is there."
            )


def _difference(made: dict[str, Any], condition: Condition) -> str:
    if made["settings"] is None:
        return f"it has no {CONDITION_FILE}, so no experiment made it"
    return describe_difference(made["settings"], condition.settings())


def check_options(conditions: list[Condition]) -> None:
    """Read the options of every arm, which needs no model.

    Raises:
        UsageError: If an option does not exist, has a wrong value or is out of its range.
    """
    from lightning_app.run.cli import CheckOptions

    for condition in {condition.arm: condition for condition in reversed(conditions)}.values():
        with for_arm(condition.arm):
            CheckOptions(command_line(condition))


@contextmanager
def for_arm(arm: str) -> Iterator[None]:
    """Name the arm in front of what is wrong with its options; a backbone is the same for all arms.

    Raises:
        UsageError: If something is.
    """
    from modules import BackboneError

    try:
        yield
    except Exception as error:
        mistake = user_mistake(error)
        if mistake is None or isinstance(mistake, BackboneError):
            raise
        raise UsageError(f"Arm {arm}: {mistake}") from error


def check_inputs(conditions: list[Condition]) -> Plan:
    """Build every arm with its Trainer and prepare every dataset, to find mistakes before any training.

    Raises:
        UsageError, BackboneError, DataError, MaskingError, OptionError: If a condition cannot run.
    """
    from lightning_app.run.cli import InfluenceCLI, PrepareData

    loads: dict[str, Load] = {}
    with quiet():
        check_options(conditions)
        for condition in {condition.arm: condition for condition in reversed(conditions)}.values():
            with for_arm(condition.arm):
                cli = InfluenceCLI(command_line(condition), run=False)
                trainer = cli.trainer
                check_trainer(trainer)
            loads[condition.arm] = load_of(cli.identity.arm.role, cli.model, trainer, cli.datamodule)
            del cli
            gc.collect()
            return_freed_memory()
        data = {
            (condition.dataset, condition.seed): PrepareData(command_line(condition)).datamodule
            for condition in {(condition.dataset, condition.seed): condition for condition in conditions}.values()
        }
    works = {c: work_of(loads[c.arm], data[c.dataset, c.seed]) for c in conditions}
    costs = {c: work.cost for c, work in works.items()}
    return Plan(*devices_of(trainer), costs, works, str(trainer.precision))


def check_trainer(trainer: Any) -> None:
    """Refuse options of the Trainer under which a condition would have no result that can be compared.

    Raises:
        UsageError: If there are several devices, or a condition would be evaluated on a part of eval.
    """
    if trainer.world_size > 1:
        raise UsageError(
            f"trainer.devices and trainer.num_nodes ask for {trainer.world_size} devices, but an experiment runs each "
            "condition on one. Leave both at 1; --devices runs several conditions at the same time."
        )
    limit = trainer.limit_val_batches
    if trainer.fast_dev_run or limit != 1.0 or isinstance(limit, int):  # 1 is one batch, 1.0 is all of them
        raise UsageError(
            f"trainer.limit_val_batches is {limit} (trainer.fast_dev_run is "
            f"{bool(trainer.fast_dev_run)}), but eval must be read completely. Leave both out; --quick is a short test."
        )


def run_conditions(
    conditions: list[Condition], todo: list[Condition], costs: Mapping[Condition, int], workers: Workers
) -> dict[Condition, str]:
    """Run the conditions in `todo`, and report the others as complete.

    Returns:
        The reason of each failure; empty if every condition is complete.
    """
    labels = {condition: f"[{number}/{len(conditions)}] {condition}" for number, condition in enumerate(conditions, 1)}
    for condition in conditions:
        if condition not in todo:
            print(f"{labels[condition]}: complete, {_headline(condition)}", flush=True)
    failures: dict[Condition, str] = {}
    started: dict[Condition, float] = {}
    with tqdm(total=len(todo), unit="condition", disable=not (workers.largest_first and sys.stderr.isatty())) as bar:
        for event in run_all(todo, costs, workers):
            condition, label = event.condition, labels[event.condition]
            if event.kind == "start":
                started[condition] = perf_counter()
                line = f"{label}: {'resuming from its last checkpoint' if condition.last_checkpoint else 'running'}"
            elif event.failure:
                failures[condition] = _with_followers(event.failure, followers(condition, todo))
                line = f"{label}: FAILED, see the reason at the end"
            else:
                line = f"{label}: {_headline(condition)} in {perf_counter() - started[condition]:.0f} s"
                line += _chance_warning(condition)
            bar.write(line)
    return failures


def _run_todo(options: Namespace, conditions: list[Condition], todo: list[Condition]) -> dict[Condition, str]:
    """Check and run the conditions in this process, on several devices, or on a cluster."""
    if options.engine == "ray" and todo:
        from lightning_app.grid.cluster import RayCluster

        with RayCluster(todo, options.address, options.num_cpus, options.storage) as cluster:
            return run_conditions(conditions, todo, cluster.check(check_inputs, todo).costs, cluster)
    if not todo or options.devices == 1:
        costs = check_inputs(todo).costs if todo else {}
        return run_conditions(conditions, todo, costs, InProcess())
    plan = call_in_process(check_inputs, todo)
    with Processes(options.devices, plan) as workers:
        return run_conditions(conditions, todo, plan.costs, workers)


def _with_followers(failure: str, left_out: list[Condition]) -> str:
    """Return the reason of a failure, and the arms that it leaves without a head to start from."""
    names = ", ".join(condition.arm for condition in left_out)
    return f"{failure.rstrip('.')}. Not run, because they start from it: {names}." if left_out else failure


def _headline(condition: Condition) -> str:
    from lightning_app.results.metrics import METRICS

    record = read_json(condition.folder / METRICS_FILE)
    shown = [metric for name, metric in METRICS.items() if metric.in_figures and name in record]
    return ", ".join(metric.describe(record[metric.name]) for metric in shown)


def _chance_warning(condition: Condition) -> str:
    from lightning_app.results.metrics import no_better_than_chance

    worse = no_better_than_chance(read_json(condition.folder / METRICS_FILE))
    return f"\n  no better than chance: {worse}" if worse else ""


def main(argv: list[str], report: Callable[[Path], str]) -> int:
    """Run an experiment, and print what `report` makes of its folder.

    Returns:
        0 if every condition is complete, 1 if one failed.
    """
    options = parse_options(argv)
    check_engine(options)
    folder = experiment_folder(options)
    make_folder(folder)
    try:
        with FileLock(folder / ".lock", timeout=0):
            return _run(options, folder, report)
    except Timeout:
        raise UsageError(
            f"Another experiment is running in {folder}. Wait for it, or give this one a --name."
        ) from None


def _run(options: Namespace, folder: Path, report: Callable[[Path], str]) -> int:
    conditions = build_conditions(options, folder)
    if options.storage:
        from lightning_app.grid.cluster import Storage

        Storage(options.storage).fetch(folder.name, folder, keep_complete=True)  # results that this machine lacks
    if not options.overwrite:
        check_settings(conditions)
    todo = [condition for condition in conditions if options.overwrite or not condition.is_complete]
    print(f"{folder}: {len(conditions)} conditions, {len(conditions) - len(todo)} of them complete", flush=True)
    if options.dry_run:
        plan = call_in_process(check_inputs, conditions)
        print(describe(plan.works, todo, rates_of(plan.accelerator, plan.precision), options.devices))
        return 0
    failures = _run_todo(options, conditions, todo)
    for condition, reason in failures.items():
        print(f"failed: {condition}: {reason}", file=sys.stderr, flush=True)
    if any(condition.is_complete for condition in conditions):
        print(f"\n{report(folder)}")
    return 1 if failures else 0
