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

ENDINGS = {"_tuned": "+all", "_head": "+head"}
"""What the names of arms ended with in earlier versions, and the overlay that replaces it."""

CLASSES = "lightning_app.checkpoint."
MOVED = {
    r"arm=": ("`arm: NAME`", "`arm: {name: NAME, role: ROLE}`"),
    r"model\.(fraction|score|tail|scope|micro_batch_size)=": (
        "the options of masking in model.init_args",
        "model.init_args.masking",
    ),
    r"trainer\.callbacks\+?=.*EarlyStopping": ("EarlyStopping in trainer.callbacks", "early_stopping"),
    r"trainer\.callbacks\+?=.*lightning_app\.checkpoint\.": (f"{CLASSES}*", "lightning_app.run.checkpoints.*"),
}
"""Keys of earlier versions, as `key=value` shows them: what they are called in a message, and where they are now."""


OBJECTS = ("trainer", "early_stopping", "data.init_args", "model.init_args", "model.init_args.masking")
"""Keys whose values are objects."""


@dataclass(frozen=True)
class Choice:
    """A dataset or an arm of a grid.

    Attributes:
        typed: What the user typed for it.
        name: What results call it.
        files: The configuration files that it stands for.
        arm: What the files say of the arm; None for a dataset.
    """

    typed: str
    name: str
    files: tuple[Path, ...]
    arm: Arm | None = None


def configs_folder() -> Path:
    """The shipped configurations: beside the packages in a checkout, inside this package in an installed wheel."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_datasets(typed: Iterable[str]) -> dict[str, Choice]:
    """Datasets by name, which is the file's `dataset:`, or else its stem.

    Args:
        typed: Names of shipped files, or paths.

    Raises:
        UsageError: If there is no such file, or two have the same name.
    """
    return _by_name(_choose_dataset(word) for word in typed)


def _choose_dataset(typed: str) -> Choice:
    file = config_file("data", typed)
    name = read_config(file).get("dataset")
    return Choice(typed, check_name(f"dataset in {file}", file.stem if name is None else name), (file,))


def find_arms(typed: Iterable[str]) -> dict[str, Choice]:
    """Arms by label, each after the one that it starts from, which is added where it is missing.

    Args:
        typed: Names of shipped files or paths, with `+` and the name of an overlay where one is laid over the arm.

    Raises:
        UsageError: If there is no such file, two arms have the same label, or an arm cannot start where it says.
    """
    asked, arms = _by_name(map(choose_arm, typed)), dict[str, Choice]()

    def add(choice: Choice, behind: tuple[str, ...] = ()) -> None:
        start = choice.arm.starts_from if choice.arm else None
        if choice.name in behind:
            raise UsageError(f"{' starts from '.join([*behind, choice.name])}. Set starts_from of one to null.")
        if start:
            add(asked.get(start) or _choose_start(choice.files[0], start), (*behind, choice.name))
        arms.setdefault(choice.name, choice)

    for choice in asked.values():
        add(choice)
    return arms


def _choose_start(file: Path, start: str) -> Choice:
    """The arm that the arm in `file` starts from: in the same folder, or a shipped one."""
    choice = choose_arm(arm_beside(file, start))
    if choice.name != start or not choice.arm or choice.arm.role != "baseline":
        raise UsageError(
            f"{file} starts from {start!r}, but {choice.files[0]} is {choice.name!r}, an arm of role "
            f"{choice.arm and choice.arm.role}. Set starts_from to an arm of role baseline, or to null."
        )
    return choice


def arm_beside(file: Path, name: str) -> str:
    """What a user types for the arm `name`, given the file of an arm that refers to it."""
    path = file.with_name(f"{name}.yaml")
    return str(path) if path.is_file() and path.parent != configs_folder() / "arms" else name


def choose_arm(typed: str) -> Choice:
    """The arm that a word stands for: `NAME`, `PATH`, or one of these with `+OVERLAY`.

    Raises:
        UsageError: If there is no such file, or it does not describe an arm.
    """
    parts = re.fullmatch(r"(.+)\+([^+/\\]+)", typed)
    name, overlay = parts.groups() if parts and not Path(typed).is_file() else (typed, "")
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
    return Choice(typed, check_name(f"arm in {files[0]}", arm.label), tuple(files), arm)


def add_arm_arguments(parser: ArgumentParser) -> None:
    """Add the options of the block `arm:`."""
    parser.add_class_arguments(Arm, "arm", skip={"color"})
    # jsonargparse reads a text for `str | None` as YAML, in which #D55E00 is a comment
    parser.add_argument("--arm.color", type=str, default=None, help="Color in figures, as matplotlib reads it.")


def _by_name(choices: Iterable[Choice]) -> dict[str, Choice]:
    found: dict[str, Choice] = {}
    for choice in choices:
        other = found.setdefault(choice.name, choice)
        if [file.resolve() for file in other.files] != [file.resolve() for file in choice.files]:
            files = " and ".join(str(each.files[0]) for each in (other, choice))
            raise UsageError(f"{files} are both called {choice.name!r}. Give one of them another name in its file.")
    return found


def config_file(kind: str, name: str) -> Path:
    """The file `configs/<kind>/<name>.yaml`, or the one that `name` is the path of.

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
    for old, new in ENDINGS.items():
        if kind == "arms" and name.removesuffix(old) in names:
            raise UsageError(f"The {what} {name!r} is now called {name.removesuffix(old) + new!r}.")
    near = [other for called, other in ALSO_CALLED.items() if called == name.lower() and other in names]
    near = near or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise UsageError(f"Unknown {what} {name!r}. {hint}There are: {', '.join(names)}, or the path of a .yaml file.")


def backbone_options(model_type: str) -> dict[str, Any]:
    """Options that fit a backbone: those of `configs/backbones/<model_type>.yaml` over those of `default.yaml`."""
    files = [configs_folder() / "backbones" / f"{name}.yaml" for name in ("default", model_type)]
    return {key: item for file in files if file.is_file() for key, item in read_config(file).items()}


def read_config(path: Path) -> dict[str, Any]:
    """The content of a YAML file.

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
    if CLASSES.encode() in content or not isinstance(config.get("arm", {}), dict):
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
    moved = [f"{old} moved to {new}" for key, (old, new) in MOVED.items() if any(re.match(key, line) for line in lines)]
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
    """The words of a command line with every configuration found and named.

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
                raise UsageError(f"There is no file {path}, which --config names.")
            check_sections(Path(path))
            place = len(found) - (not option)
            found[place:place] = _names(Path(path))
            word = option + path
        found.append(word)
    return found


def options_set(words: list[str]) -> Iterator[str]:
    """The options that a command line sets by its words and files, as they are typed."""
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
    """Options that name the dataset and the arm of a file after the file."""
    config = read_config(path)
    arm, data = (section if isinstance(section, dict) else {} for section in (config.get("arm"), config.get("data")))
    names = [f"--arm.name={path.stem}"] if "role" in arm and "name" not in arm else []
    return names + ([f"--dataset={path.stem}"] if "class_path" in data and "dataset" not in config else [])
