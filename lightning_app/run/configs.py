"""Configuration files: where the shipped ones are, what results call them, and which keys of earlier versions moved."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lightning_app.errors import UsageError
from lightning_app.messages import explain, shown
from lightning_app.results.files import check_name
from lightning_app.results.identity import Arm
from lightning_app.results.settings import merge_settings

ALSO_CALLED = {"cuda": "gpu", "nvidia": "gpu", "rocm": "gpu", "xla": "tpu"}
"""What users call the accelerators of the shipped files."""

OPTIONS = {"data": "datasets"}
"""Options of `influence experiment` that have another name than the folder of their files."""

RENAMED_ENDINGS = {"_tuned": "+all", "_head": "+head"}
"""What the names of arms ended with in earlier versions, and the overlay that replaces it."""

OLD_CLASSES = "lightning_app.checkpoint."
MOVED_KEYS = {
    r"arm=": ("`arm: NAME`", "`arm: {name: NAME, role: ROLE}`"),
    r"model\.(fraction|score|tail|scope|micro_batch_size)=": (
        "the options of masking in model.init_args",
        "model.init_args.masking",
    ),
    r"trainer\.callbacks\+?=.*EarlyStopping": ("EarlyStopping in trainer.callbacks", "early_stopping"),
    r"trainer\.callbacks\+?=.*lightning_app\.checkpoint\.": (f"{OLD_CLASSES}*", "lightning_app.run.checkpoints.*"),
}
"""Keys of earlier versions, as `key=value` shows them: what they are called in a message, and where they are now."""


OBJECTS = ("trainer", "early_stopping", "data.init_args", "model.init_args", "model.init_args.masking")
"""Keys whose values are objects."""


@dataclass(frozen=True)
class GridEntry:
    """A dataset or an arm of a grid.

    Attributes:
        argument: What the user typed on the command line.
        name: Its name in results.
        files: Its configuration files.
        arm: The description of the arm; None for a dataset.
    """

    argument: str
    name: str
    files: tuple[Path, ...]
    arm: Arm | None = None


def configs_folder() -> Path:
    """Return the folder of shipped configurations: in a checkout next to the packages, in a wheel inside this one."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_datasets(arguments: Iterable[str]) -> dict[str, GridEntry]:
    """Return datasets by name, which is the file's `dataset:`, or else its stem.

    Args:
        arguments: Names of shipped files, or paths.

    Raises:
        UsageError: If there is no such file, or two have the same name.
    """
    return _by_name(_dataset_entry(argument) for argument in arguments)


def _dataset_entry(argument: str) -> GridEntry:
    file = config_file("data", argument)
    name = read_config(file).get("dataset")
    return GridEntry(argument, check_name(f"dataset in {file}", file.stem if name is None else name), (file,))


def find_arms(arguments: Iterable[str]) -> dict[str, GridEntry]:
    """Return arms by label, each after the one that it starts from, which is added where it is missing.

    Args:
        arguments: Names of shipped files or paths, with `+` and the name of an overlay where one is laid over the arm.

    Raises:
        UsageError: If there is no such file, two arms have the same label, or an arm cannot start where it says.
    """
    requested, arms = _by_name(map(choose_arm, arguments)), dict[str, GridEntry]()

    def add(entry: GridEntry, behind: tuple[str, ...] = ()) -> None:
        start = entry.arm.starts_from if entry.arm else None
        if entry.name in behind:
            raise UsageError(f"{' starts from '.join([*behind, entry.name])}. Set starts_from of one to null.")
        if start:
            add(requested.get(start) or _start_entry(entry.files[0], start), (*behind, entry.name))
        arms.setdefault(entry.name, entry)

    for entry in requested.values():
        add(entry)
    return arms


def _start_entry(file: Path, start: str) -> GridEntry:
    """Return the arm that the arm in `file` starts from: in the same folder, or a shipped one."""
    entry = choose_arm(arm_beside(file, start))
    if entry.name != start or not entry.arm or entry.arm.role != "baseline":
        raise UsageError(
            f"{file} starts from {start!r}, but {entry.files[0]} is {entry.name!r}, an arm of role "
            f"{entry.arm and entry.arm.role}. Set starts_from to an arm of role baseline, or to null."
        )
    return entry


def arm_beside(file: Path, name: str) -> str:
    """Return what a user types for the arm `name`, given the file of an arm that refers to it."""
    path = file.with_name(f"{name}.yaml")
    return str(path) if path.is_file() and path.parent != configs_folder() / "arms" else name


def choose_arm(argument: str) -> GridEntry:
    """Return the arm that a word stands for: `NAME`, `PATH`, or one of these with `+OVERLAY`.

    Raises:
        UsageError: If there is no such file, or it does not describe an arm.
    """
    parts = re.fullmatch(r"(.+)\+([^+/\\]+)", argument)
    name, overlay = parts.groups() if parts and not Path(argument).is_file() else (argument, "")
    files = [config_file("arms", name), *([config_file("tune", overlay)] if overlay else [])]
    blocks = [read_config(file).get("arm") or {} for file in files]
    for file, block in zip(files, blocks, strict=True):
        if not isinstance(block, dict):
            raise UsageError(f"{file} has no block `arm:` with a name and a role.")
    named = {"name": files[0].stem} | ({"overlay": files[1].stem} if overlay else {})
    parser = ArgumentParser(exit_on_error=False)
    add_arm_arguments(parser)
    try:
        block = {key: item for block in blocks for key, item in block.items()}
        arm = Arm(**parser.parse_object({"arm": named | block}).arm.as_dict())
    except ArgumentError as error:
        reason = explain(str(error), [f"arm.{field.name}" for field in fields(Arm)])
        raise UsageError(f"{files[0]} does not describe an arm: {reason}") from error
    return GridEntry(argument, check_name(f"arm in {files[0]}", arm.label), tuple(files), arm)


def add_arm_arguments(parser: ArgumentParser) -> None:
    """Add the options of the block `arm:`."""
    parser.add_class_arguments(Arm, "arm", skip={"color"})
    # jsonargparse reads a text for `str | None` as YAML, in which #D55E00 is a comment
    parser.add_argument("--arm.color", type=str, default=None, help="Color in figures, as matplotlib reads it.")


def _by_name(entries: Iterable[GridEntry]) -> dict[str, GridEntry]:
    found: dict[str, GridEntry] = {}
    for entry in entries:
        other = found.setdefault(entry.name, entry)
        if [file.resolve() for file in other.files] != [file.resolve() for file in entry.files]:
            files = " and ".join(str(each.files[0]) for each in (other, entry))
            raise UsageError(f"{files} are both called {entry.name!r}. Give one of them another name in its file.")
    return found


def config_file(kind: str, name: str) -> Path:
    """Return the file `configs/<kind>/<name>.yaml`, or the one that `name` is the path of.

    Raises:
        UsageError: If there is none; lists the names there are, near misses first.
    """
    if name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return Path(name)
        raise UsageError(f"There is no file {name}, which --{OPTIONS.get(kind, kind)} names.")
    folder = configs_folder() / kind
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name in names:
        return folder / f"{name}.yaml"
    what = OPTIONS.get(kind, kind).removesuffix("s")
    for old, new in RENAMED_ENDINGS.items():
        if kind == "arms" and name.removesuffix(old) in names:
            raise UsageError(f"The {what} {name!r} is now called {name.removesuffix(old) + new!r}.")
    near = [other for called, other in ALSO_CALLED.items() if called == name.lower() and other in names]
    near = near or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(f"Unknown {what} {name!r}. {hint}There are: {', '.join(names)}, or the path of a .yaml file.")


def backbone_options(model_type: str) -> dict[str, Any]:
    """Return the options of `configs/backbones/default.yaml`, overridden by those of `<model_type>.yaml`."""
    files = [configs_folder() / "backbones" / f"{name}.yaml" for name in ("default", model_type)]
    return {key: item for file in files if file.is_file() for key, item in read_config(file).items()}


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file.

    Raises:
        UsageError: If it is not YAML, not an object, or of an earlier version.
    """
    try:
        content = path.read_bytes()
        config = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} must hold keys with values, but it holds {str(config)[:40]!r}.")
    if OLD_CLASSES.encode() in content or not isinstance(config.get("arm", {}), dict):
        check_version(path, config)
    return config


def check_version(path: Path, config: dict[str, Any]) -> None:
    """Refuse a configuration of an earlier version by one message that names the keys that moved.

    Raises:
        UsageError: If a key has moved.
    """
    lines = [
        f"{key}={json.dumps(value)}" for key, value in merge_settings({"configs": [config], "overrides": []}).items()
    ]
    moved = [
        f"{old} moved to {new}" for key, (old, new) in MOVED_KEYS.items() if any(map(re.compile(key).match, lines))
    ]
    if moved:
        raise UsageError(f"{path} was written for an earlier version: {'; '.join(moved)}. Change that, or fit again.")


def check_sections(path: Path) -> None:
    """Refuse what the argument parser accepts, or does not survive, in a configuration.

    Raises:
        UsageError: If a section is not an object, or the file names another one.
    """
    config = read_config(path)
    if "config" in config:
        raise UsageError(f"config cannot be set in {path}: a file names no other one. Give each by -c.")
    for keys in OBJECTS:
        section: Any = config
        for key in keys.split("."):
            section = section.get(key, {}) if isinstance(section, dict) else {}
        if not isinstance(section, dict):
            raise UsageError(f"{keys} in {path} is {shown(section)}, but must be an object of its options.")


def find_configs(words: list[str]) -> list[str]:
    """Return the words of a command line with every configuration found and named.

    A `configs/...` that is not in the working directory becomes the shipped file. Where a file has a dataset or an arm
    without a name, its stem is set as the name before it is read, so that the file or a later word can override it.

    Raises:
        UsageError: If a file is not YAML, or of an earlier version.
    """
    found: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if re.match(r"--arm(=|$)", word):
            raise UsageError("--arm is now --arm.name, and --arm.role is the kind of the arm.")
        option = "--config=" if word.startswith("--config=") else ""
        if option or before in ("-c", "--config"):
            path = _find(word.removeprefix(option))
            if not Path(path).is_file():
                raise UsageError(f"--config is {str(path)!r}, but there is no such file.")
            check_sections(Path(path))
            place = len(found) - (not option)
            found[place:place] = _names(Path(path))
            word = option + path
        found.append(word)
    return found


def options_set(words: list[str]) -> Iterator[str]:
    """Return the options that a command line sets by its words and files, as they are typed."""
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("--config=") or before in ("-c", "--config"):
            config = read_config(Path(word.removeprefix("--config=")))
            keys = [f"--{key}" for key in merge_settings({"configs": [config], "overrides": []})]
        else:
            keys = [word.partition("=")[0]]
        yield from (key.replace(".init_args.", ".") for key in keys)


def _find(name: str) -> str:
    path = Path(name)
    shipped = configs_folder().joinpath(*path.parts[1:])
    return str(shipped) if path.parts[:1] == ("configs",) and not path.exists() and shipped.exists() else name


def _names(path: Path) -> list[str]:
    """Return options that name the dataset and the arm of a file by the file's stem."""
    config = read_config(path)
    arm, data = (section if isinstance(section, dict) else {} for section in (config.get("arm"), config.get("data")))
    names = [f"--arm.name={path.stem}"] if "role" in arm and "name" not in arm else []
    return names + ([f"--dataset={path.stem}"] if "class_path" in data and "dataset" not in config else [])
