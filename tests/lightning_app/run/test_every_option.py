"""A mistake in any option of any class that the command line configures is one line that names the key.

The options come from the parsers and from the signatures of the classes; only ranges are in a table, and an option that
can have a range must be in it.
"""

import inspect
import json
import re
from functools import partial
from importlib import import_module
from typing import Any, get_args

import pytest
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping

import datamodules
import modules
from datamodules import TextDataModule
from lightning_app.__main__ import COMMANDS, OTHER_COMMANDS
from lightning_app.errors import UsageError, user_mistake
from lightning_app.messages import parse
from lightning_app.results.identity import Arm
from lightning_app.run.cli import LINKED, NOT_ASKED, InfluenceCLI, options_of
from lightning_app.run.ranges import RANGES
from modules import Classifier

RAW = re.compile(r"Union|[Ss]ubtypes|NestedArg|Parser key|<class|Namespace|typing\.|are required|expected one")
"""What jsonargparse and argparse write, and users cannot read."""


class Reader(InfluenceCLI):
    """`influence fit`, which reads one command line after the other, and runs none."""

    def __init__(self) -> None:
        super().__init__(["fit", *words_of("Influence", "Docstrings")])

    def before_instantiate_classes(self) -> None:
        """Places nothing."""

    def instantiate_classes(self) -> None:
        """Build nothing; LightningCLI asks for the names that its commands need."""
        self.trainer, self.model, self.datamodule, self.config_init = Trainer, None, None, self.config

    def fit(self, **kwargs: Any) -> None:
        """Fits nothing."""

    def read(self, *words: str) -> None:
        """Read a command line."""
        self.parse_arguments(self.parser, list(words))

    def build(self, *words: str) -> None:
        """Read a command line, and build its classes as `influence fit` does."""
        self.read(*words)
        super().before_instantiate_classes()
        super().instantiate_classes()


def words_of(model: str, data: str) -> list[str]:
    own = ["--data.path=csv", "--data.name=mine", "--data.label_names=[a, b]"] if data == "HubTextDataModule" else []
    arm = ["--arm.name=mine", "--arm.role=mask", "--arm.starts_from=null"]
    return [*arm, f"--model=modules.{model}", f"--data=datamodules.{data}", *own]


UNUSED = "HubDataModule"
"""It has no options of its own: datasets are subclasses that set attributes."""


def public_classes(package: Any, base: type) -> list[str]:
    kinds = {name: getattr(package, name) for name in package.__all__}
    return [
        name
        for name, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, base) and not inspect.isabstract(kind) and name != UNUSED
    ]


MODELS = public_classes(modules, Classifier)
DATA = public_classes(datamodules, TextDataModule)
WHERE = [("", "")] + [("model", name) for name in MODELS] + [("data", name) for name in DATA]
"""Each class; ("", "") stands for the Trainer, early stopping, the arm and the names of a run."""


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader()


def options(reader: Reader, section: str, name: str) -> dict[str, Any]:
    """Return the options in one place with their types; those of the parser with None."""
    if section:
        return options_of(section, getattr(modules if section == "model" else datamodules, name))
    keys = vars(reader.command_parsers["fit"].get_defaults().as_flat())
    return {key: None for key in keys if key not in ("model", "data", "config")}


def command(section: str, name: str) -> list[str]:
    return ["fit", *words_of(name if section == "model" else "Influence", name if section == "data" else "Docstrings")]


def mistake(call: Any, *words: Any) -> str | None:
    """Return the one line by which a command line is refused; None if it is not."""
    try:
        call(*words)
    except Exception as error:
        message = str(user_mistake(error) or repr(error))
        assert user_mistake(error), f"{words[-1]}: {message}"
        assert "\n" not in message
        assert not RAW.search(message), message
        return message
    return None


@pytest.mark.parametrize(("section", "name"), WHERE)
def test_a_typing_mistake_in_any_key_names_it_and_the_nearest_one(reader, section, name):
    for key in options(reader, section, name).keys() - NOT_ASKED:
        for wrong in (f"{key}q", key[:-1]):
            message = mistake(reader.read, *command(section, name), f"--{wrong}=1")
            assert message == f"There is no option {wrong}. Did you mean {key}?"


WRONG = ([["no"]], "nonsense", 1.5)
"""No option accepts a list of lists; each of the others is of a wrong type for some."""


@pytest.mark.parametrize(("section", "name"), WHERE)
def test_a_value_of_a_wrong_type_names_the_key_and_what_was_found(reader, section, name, tmp_path):
    file = tmp_path / "wrong.yaml"
    for key in options(reader, section, name).keys() - LINKED_KEYS:
        for value in WRONG:
            option = key.replace(".", ".init_args.", 1) if section else key
            file.write_text(json.dumps(nested(option, value)))
            message = mistake(reader.read, *command(section, name), "-c", str(file))
            assert message or value != [["no"]], f"{key} accepts a list of lists"
            assert not message or re.match(rf"{key} .*{found_in(value)}.* must be", message), message


LINKED_KEYS = {option.removeprefix("--") for option in LINKED}


def nested(key: str, value: Any) -> Any:
    for part in reversed(key.split(".") if key else []):
        value = {part: value}
    return value


def found_in(value: Any) -> str:
    """Return a pattern of how a message shows a value or, of a list, its first item."""
    inside = f"|{found_in(value[0])}" if isinstance(value, list) and value else ""
    return f"(?:{re.escape(str(value))}|{re.escape(repr(value))}{inside})"


REQUIRED = {
    "predict": ["--ckpt=a", "--input=b.csv", "--output=c.csv"],
    "export": ["--ckpt=a", "--out=b"],
    "completion": ["bash"],
}


@pytest.mark.parametrize("name", OTHER_COMMANDS)
def test_a_typing_mistake_in_a_key_of_another_command_names_it_and_the_nearest_one(name):
    parser = import_module(COMMANDS[name]).build_parser()
    for key, default in vars(parser.get_defaults().as_flat()).items():
        if key in ("shell", "__default_config__"):
            continue  # the first is typed without its name, the second is not for users
        message = mistake(partial(parse, parser), [*REQUIRED.get(name, []), f"--{key}q=1"])
        assert message == f"There is no option {key}q. Did you mean {key}?"
        if not isinstance(default, bool):
            assert mistake(partial(parse, parser), [*REQUIRED.get(name, []), f"--{key}"]) == f"{key} has no value."


@pytest.mark.parametrize(
    ("name", "word", "message"),
    [
        ("experiment", "--devices=0", "devices is '0', but must be a whole number above 0."),
        ("experiment", "--devices=two", "devices is 'two', but must be a whole number above 0."),
        ("experiment", "--num_cpus=-1", "num_cpus is '-1', but must be a whole number above 0."),
        ("experiment", "--engine=spark", "engine is 'spark', but must be local or ray."),
        ("experiment", "--seeds=[1.5]", "seeds is '1.5', but must be a whole number."),
        ("experiment", "--quick=3", "quick is '3', but takes no value."),
        ("experiment", "--datasets=3", "datasets is '3', but must be a list."),
        ("experiment", "--nothing=3", "There is no option nothing. See --help."),
        ("predict", "--batch_size=0", "batch_size is '0', but must be a whole number above 0 or null."),
        ("predict", "--accelerator=cuda", "accelerator is 'cuda', but must be auto or cpu or gpu or mps or tpu."),
    ],
)
def test_a_wrong_value_of_another_command_names_the_key_and_what_was_found(name, word, message):
    parser = import_module(COMMANDS[name]).build_parser()
    assert mistake(partial(parse, parser), [*REQUIRED.get(name, []), word]) == message


def test_what_must_be_set_is_named():
    parser = import_module(COMMANDS["export"]).build_parser()
    assert mistake(partial(parse, parser), ["--ckpt=a"]) == "out must be set: there is no default."


OUT_OF_RANGE: dict[str, list[str]] = {
    "seed_everything": ["-1", "4294967296"],
    "outputs": [""],
    "experiment": ["", "a/b", ".."],
    "dataset": ["", "a/b"],
    "ckpt_path": ["gone.ckpt"],
    "weights_only": ["false"],
    "arm.name": ["", "a/b"],
    "arm.starts_from": ["a/b"],
    "arm.control": ["a/b"],
    "arm.overlay": ["a/b"],
    "arm.color": ["nocolor"],
    "early_stopping.monitor": ["val/acuracy"],
    "early_stopping.mode": ["maximum"],
    "early_stopping.patience": ["-1"],
    "early_stopping.min_delta": ["-0.1", ".inf"],
    "trainer.accelerator": ["warp"],
    "trainer.strategy": ["dp"],
    "trainer.devices": ["0", "-2", "abc", "[]", "[-1]"],
    "trainer.num_nodes": ["0"],
    "trainer.fast_dev_run": ["-1"],
    "trainer.max_epochs": ["-2"],
    "trainer.min_epochs": ["-1"],
    "trainer.max_steps": ["-2"],
    "trainer.min_steps": ["-1"],
    "trainer.max_time": ["5", "soon"],
    "trainer.limit_train_batches": ["-1", "1.5", "-0.5"],
    "trainer.limit_val_batches": ["-1", "1.5"],
    "trainer.limit_test_batches": ["-1", "1.5"],
    "trainer.limit_predict_batches": ["-1", "1.5"],
    "trainer.overfit_batches": ["-1", "1.5"],
    "trainer.val_check_interval": ["0", "1.5", "soon"],
    "trainer.check_val_every_n_epoch": ["0"],
    "trainer.num_sanity_val_steps": ["-2"],
    "trainer.log_every_n_steps": ["-1"],
    "trainer.accumulate_grad_batches": ["0"],
    "trainer.gradient_clip_val": ["-1", ".inf"],
    "trainer.gradient_clip_algorithm": ["median"],
    "trainer.profiler": ["simpel"],
    "trainer.reload_dataloaders_every_n_epochs": ["-1"],
    "trainer.default_root_dir": ["here"],
    "model.learning_rate": ["0", "-1", ".inf"],
    "model.weight_decay": ["-1", ".inf"],
    "model.warmup_ratio": ["1", "-0.1"],
    "model.targets": ["[]", "("],
    "model.start": ["gone.safetensors"],
    "model.rank": ["0"],
    "model.alpha": ["0"],
    "model.dropout": ["1", "-0.1"],
    "model.fractions": ["[]", "[0.0]", "[1.5]"],
    "model.tails": ["[]"],
    "model.scores": ["[]", "[nope]", "[no.such.module]"],
    "model.masking.fraction": ["0", "1", "1.5"],
    "model.masking.score": ["nope", "no.such.module"],
    "model.masking.matched_score": ["nope"],
    "model.masking.targets": ["[q_proj]"],
    "model.masking.num_samples": ["0"],
    "model.masking.mask_path": ["gone.safetensors"],
    "model.masking.seed": ["1"],
    "model.masking.count": ["0"],
    "model.masking.micro_batch_size": ["0"],
    "data.batch_size": ["0"],
    "data.eval_batch_size": ["0"],
    "data.eval_tokens": ["0"],
    "data.max_length": ["0"],
    "data.head_init_size": ["1"],
    "data.train_size": ["1"],
    "data.dev_size": ["1"],
    "data.eval_size": ["1"],
    "data.calibration_size": ["1", "1000000"],
    "data.pad_lengths": ["[]", "[-1, 128]", "[64]"],
    "data.num_workers": ["-1"],
    "data.name": ["", "a/b"],
    "data.label_names": ["[]", "[a]", "[a, a]"],
    "data.text_columns": ["[]"],
}
"""Values of the right type that an option refuses."""

UNBOUNDED = {
    "early_stopping.stopping_threshold": "any number that the metric can reach",
    "early_stopping.divergence_threshold": "any number that the metric can reach",
    "trainer.model_registry": "a name that Lightning's own registry checks",
    "model.backbone": "what the hub and the disk have is known only there",
    "data.cache_dir": "any folder",
    **{
        f"data.{name}": "what the data have is known only from the data"
        for name in ("path", "config", "data_files", "eval_split", "train_split", "label_column")
    },
}
"""Options without a range of their own, and why."""


def kinds_of(annotation: Any) -> set[Any]:
    """Return the plain types in an annotation; the names of a `Literal` are checked as a type."""
    inner = [kind for argument in get_args(annotation) for kind in kinds_of(argument)]
    return {kind for kind in [annotation, *inner] if kind in (int, float, str)}


def test_every_option_that_can_have_a_range_is_in_a_table(reader):
    keys = {key: kind for section, name in WHERE[1:] for key, kind in options(reader, section, name).items()}
    keys |= {f"trainer.{name}": item.annotation for name, item in inspect.signature(Trainer).parameters.items()}
    keys |= options_of("early_stopping", EarlyStopping) | options_of("arm", Arm)
    ranged = {key for key, kind in keys.items() if kinds_of(kind)} - LINKED_KEYS
    assert ranged - OUT_OF_RANGE.keys() - UNBOUNDED.keys() == set()
    assert RANGES.keys() <= OUT_OF_RANGE.keys()
    assert not OUT_OF_RANGE.keys() & UNBOUNDED.keys()


def owner(reader: Reader, key: str) -> tuple[str, str]:
    """Return the first place that has an option."""
    return next(place for place in WHERE if key in options(reader, *place))


@pytest.mark.parametrize("key", OUT_OF_RANGE)
def test_a_value_out_of_its_range_names_the_key_before_a_backbone_is_loaded(reader, key, tiny_qwen, monkeypatch):
    def load(*_: Any) -> None:
        raise AssertionError("a backbone is loaded")

    monkeypatch.setattr("modules.classifier.load_backbone", load)
    for value in OUT_OF_RANGE[key]:
        words = [*command(*owner(reader, key)), f"--model.backbone={tiny_qwen}", f"--{key}={value}"]
        message = mistake(reader.build, *words)
        assert key.rpartition(".")[2] in str(message)
        assert re.search(f"{re.escape(value) or repr(value)}|{found_in(yaml.safe_load(value))}", str(message)), message


def test_values_in_their_ranges_reach_the_backbone(reader, tiny_qwen, monkeypatch):
    def load(name: str) -> None:
        raise UsageError(f"{name} is loaded")

    monkeypatch.setattr("modules.classifier.load_backbone", load)
    for name in MODELS:
        message = mistake(reader.build, *command("model", name), f"--model.backbone={tiny_qwen}")
        assert message == f"{tiny_qwen} is loaded"
