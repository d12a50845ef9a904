"""`influence experiment`: every condition of a grid dataset x arm x seed, then their comparison."""

import gc
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from filelock import FileLock, Timeout
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from tqdm.auto import tqdm

from lightning_app.errors import UsageError
from lightning_app.grid.condition import CONDITION_FILE, Condition, command_line, quiet
from lightning_app.grid.schedule import Plan, Workers, passes_of, run_all, tokens_of
from lightning_app.grid.workers import InProcess, Processes, call_in_process, devices_of
from lightning_app.results.files import METRICS_FILE, check_name, make_folder, read_json
from lightning_app.run.configs import config_file, config_files, configs_folder, find_configs
from lightning_app.run.overwrite import is_complete

QUICK_SIZE = 50


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
    add("--datasets", type=list[str], metavar="NAME ...", default=[], help="Files in configs/data, or paths.")
    add("--arms", type=list[str], metavar="NAME ...", default=[], help="Files in configs/arms, or paths.")
    add("--seeds", type=list[int], metavar="K ...", default=[0], help="Seeds: of splits, head and batch order.")
    add("--quick", action="store_true", help=f"{QUICK_SIZE} samples a split: tries the pipeline, measures nothing.")
    add("--accelerator", type=str | None, default=None, help="Name of a file in configs/accelerator: cpu, gpu, tpu.")
    add(
        "--devices", type=PositiveInt, default=1, help="Cores, GPUs or TPU chips that run one condition each at a time."
    )
    add(
        "--engine", type=Literal["local", "ray"], default="local", help="Run here, or on a Ray cluster (extra cluster)."
    )
    add("--address", type=str | None, default=None, help="Of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT.")
    add("--num_cpus", type=PositiveInt, default=1, help="CPU cores of each condition on a Ray cluster.")
    add(
        "--storage",
        type=str | None,
        default=None,
        metavar="URL",
        help="Where the nodes of a Ray cluster leave results, s3://bucket/folder or another that fsspec knows, if "
        "--outputs is no folder that all of them see. Results are copied from there to --outputs.",
    )
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


def check_engine(options: Namespace) -> None:
    """Refuses options that would have no effect.

    Raises:
        UsageError: If an option of one engine is given to the other.
    """
    idle = ["devices"] if options.engine == "ray" else ["address", "num_cpus", "storage"]
    for name in idle:
        if getattr(options, name) != build_parser().get_defaults()[name]:
            raise UsageError(f"--{name} has no meaning with --engine {options.engine}. Leave it out.")


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
        repeated = [value for value, times in Counter(getattr(options, key)).items() if times > 1]
        if repeated:
            raise UsageError(f"--{key} has {repeated[0]} more than once: give each value once.")
    datasets, arms = config_files("data", options.datasets), config_files("arms", ["baseline", *options.arms])
    for arm, _ in map(_split_assignment, options.set):
        if arm and arm not in arms:
            config_file("arms", arm)
    return [
        _condition(options, folder, dataset, arm, seed, [datasets[dataset], arms[arm]])
        for dataset in datasets
        for seed in options.seeds
        for arm in arms
    ]


def _condition(options: Namespace, folder: Path, dataset: str, arm: str, seed: int, files: list[Path]) -> Condition:
    configs = [configs_folder() / "base.yaml", *files]
    if options.accelerator:
        configs.append(config_file("accelerator", options.accelerator))
    args = [f"--model.backbone={options.backbone}"]
    if options.quick:
        args += [f"--data.{split}_size={QUICK_SIZE}" for split in ("head_init", "train", "dev", "eval")]
    args += [f"--{setting}" for only, setting in map(_split_assignment, options.set) if only in ("", arm)]
    run = folder / dataset / arm / f"seed{seed}"
    return Condition(dataset, arm, seed, run, tuple(args), tuple(configs), options.overwrite)


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
        fitted_alone = made["digest"] is None and is_complete("fit", condition.folder)
        if (condition.is_complete or fitted_alone) and made["digest"] != condition.digest():
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


def check_inputs(conditions: list[Condition]) -> Plan:
    """Builds every arm with its Trainer and prepares every dataset, so that mistakes are found before any training.

    Raises:
        UsageError, BackboneError, DataError, MaskingError, OptionError: If a condition could not be run.
    """
    from lightning_app.run.cli import InfluenceCLI, PrepareData

    passes: dict[str, float] = {}
    with quiet():
        for condition in {condition.arm: condition for condition in reversed(conditions)}.values():
            cli = InfluenceCLI(command_line(condition), run=False)
            trainer = cli.trainer
            if trainer.world_size > 1:
                raise UsageError(
                    f"Arm {condition.arm} asks for {trainer.num_devices} devices on {trainer.num_nodes} nodes. An "
                    "experiment runs each condition on one: leave trainer.devices and trainer.num_nodes at 1. To run "
                    "several conditions at once, give --devices."
                )
            passes[condition.arm] = passes_of(cli.model, trainer)
            del cli
            gc.collect()
        data = {
            (condition.dataset, condition.seed): PrepareData(command_line(condition)).datamodule
            for condition in {(condition.dataset, condition.seed): condition for condition in conditions}.values()
        }
    costs = {c: tokens_of(passes[c.arm], data[c.dataset, c.seed]) for c in conditions}
    return Plan(*devices_of(trainer), costs)


def run_conditions(
    conditions: list[Condition], todo: list[Condition], costs: Mapping[Condition, int], workers: Workers
) -> dict[Condition, str]:
    """Runs the conditions that are to do, and says of the others that they are complete.

    Returns:
        The reason of each failure; empty if all are complete.
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
                line = f"{label}: {'going on from its last checkpoint' if condition.last_checkpoint else 'running'}"
            elif event.failure:
                failures[condition] = event.failure
                line = f"{label}: FAILED, the reason is told at the end"
            else:
                line = f"{label}: {_headline(condition)} in {perf_counter() - started[condition]:.0f} s"
            bar.write(line)
    return failures


def _run_todo(options: Namespace, conditions: list[Condition], todo: list[Condition]) -> dict[Condition, str]:
    """Checks and runs the conditions on what is asked for: this process, several devices, or a cluster."""
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


def _headline(condition: Condition) -> str:
    metrics = read_json(condition.folder / METRICS_FILE)
    return f"accuracy {metrics['accuracy']:.1%}, macro-F1 {metrics['macro_f1']:.1%}"


def main(argv: list[str]) -> int:
    """Runs an experiment; 0 if every condition is complete, 1 if one failed."""
    options = parse_options(argv)
    check_engine(options)
    folder = experiment_folder(options)
    make_folder(folder)
    try:
        with FileLock(folder / ".lock", timeout=0):
            return _run(options, folder)
    except Timeout:
        raise UsageError(
            f"Another experiment is running in {folder}. Wait for it, or give this one a --name."
        ) from None


def _run(options: Namespace, folder: Path) -> int:
    conditions = build_conditions(options, folder)
    if options.storage:
        from lightning_app.grid.cluster import Storage

        Storage(options.storage).fetch(folder.name, folder, keep_complete=True)  # what this machine does not have yet
    if not options.overwrite:
        check_settings(conditions)
    todo = [condition for condition in conditions if options.overwrite or not condition.is_complete]
    print(f"{folder}: {len(conditions)} conditions, {len(conditions) - len(todo)} of them complete", flush=True)
    failures = _run_todo(options, conditions, todo)
    for condition, reason in failures.items():
        print(f"failed: {condition}: {reason}", file=sys.stderr, flush=True)
    if any(condition.is_complete for condition in conditions):
        from lightning_app.report import write_report  # the plotting library is loaded when there is something to plot

        print(f"\n{write_report(folder)}")
    return 1 if failures else 0
