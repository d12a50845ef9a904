"""Mistakes in configurations and command lines, each one line; `test_every_option.py` goes through all options."""

import re

import pytest

from lightning_app.errors import UsageError
from lightning_app.run.cli import InfluenceCLI
from lightning_app.run.configs import choose_arm, configs_folder, find_datasets


class ParseOnly(InfluenceCLI):
    """Parses, and builds nothing."""

    def __init__(self, *words: str, arm: str = "influence") -> None:
        files = [configs_folder() / "base.yaml", *find_datasets(["docstrings"])["docstrings"].files]
        options = [word for file in (*files, *choose_arm(arm).files) for word in ("-c", str(file))]
        super().__init__([*options, "--model.backbone=some/model", *words], run=False)

    def before_instantiate_classes(self) -> None:
        """Place nothing."""

    def instantiate_classes(self) -> None:
        """Build nothing."""


def told(*words: str, arm: str = "influence") -> str:
    with pytest.raises(UsageError) as error:
        ParseOnly(*words, arm=arm)
    message = str(error.value)
    assert "\n" not in message
    assert not re.search("Union|subtypes|NestedArg|Parser key|<class", message)
    return message


OPTIONS = {
    "trainer.max_epochs": ("three", "a whole number or null"),
    "trainer.precision": ("float", "64 or 32 or 16 or "),
    "trainer.enable_progress_bar": ("perhaps", "true or false or null"),
    "early_stopping.patience": ("long", "a whole number"),
    "arm.role": ("king", "baseline or mask or adapter or full or sweep"),
    "seed_everything": ("x", "a whole number"),
    "data.max_length": ("long", "a whole number"),
    "data.train_on": ("dev", "train or head_init"),
    "data.pad_lengths": ("x", "a list or null"),
    "data.shuffle_calibration_labels": ("perhaps", "true or false"),
    "data": ("SST3", "the path of a class"),
    "model.learning_rate": ("fast", "a number or null"),
    "model.masking.fraction": ("half", "a number"),
    "model.masking.tail": ("left", "lowest or highest"),
    "model.tune": ("some", "none or head or all"),
    "model.compile": ("perhaps", "true or false"),
}


@pytest.mark.parametrize("key", OPTIONS)
def test_a_value_of_a_wrong_kind_is_told_with_the_key_and_what_is_possible(key):
    value, possible = OPTIONS[key]
    message = told(f"--{key}={value}")
    assert message.startswith(f"{key} is {value!r}, but must be ")
    assert possible in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.max_epoch=3"], "There is no option trainer.max_epoch. Did you mean trainer.max_epochs?"),
        (["--early_stopping.patienc=3"], "Did you mean early_stopping.patience?"),
        (["--model.fraction=0.1"], "There is no option model.fraction. Did you mean model.masking.fraction?"),
        (["--fraction=0.1"], "There is no option fraction. Did you mean model.masking.fraction?"),
        (["--nothing=1"], "There is no option nothing. Most options begin with data., model. or trainer."),
        (["--model=modules.Influense"], "model cannot be modules.Influense: "),
        (["--trainer.callbacks+=gone.Callback"], "trainer.callbacks cannot be gone.Callback: No module named 'gone'"),
        (["--data.seed=1"], "--data.seed cannot be set: it follows from --seed_everything"),
        (["--model.init_args.num_labels=1"], "it follows from the dataset"),
        (["--model.masking.frac=0.1"], "There is no option model.masking.frac. Did you mean model.masking.fraction?"),
        (["--data.label_names=[a, b]"], "datamodules.Docstrings has no option data.label_names, but HubTextData"),
        (["--data.self=1"], "There is no option data.self."),
        (["--trainer.logger.save_dirr=x"], "Did you mean trainer.logger.save_dir?"),
        (
            ["--model=datamodules.SST2"],
            "model is 'datamodules.SST2', but must be the path of a subclass of Cl",
        ),
        (["--model.masking=3"], "model.masking is '3', but must be an object of its options."),
        (["--trainer=3"], "trainer is '3', but must be an object of its options."),
        (["--trainer.max_epochs"], "trainer.max_epochs has no value."),
        (["--model.masking.fraction"], "model, or an option in it, has no value."),
        (["--overwrite=maybe"], "overwrite is 'maybe', but takes no value."),
        (["--data=datamodules.HubTextDataModule"], "data.path, data.name, data.label_names must be set: there is no"),
        (["--seed_everything=true"], "seed_everything is 'True', but must be a whole number."),
        (["-c", "gone.yaml"], "--config is 'gone.yaml', but there is no such file."),
    ],
)
def test_other_mistakes_are_told_in_one_line(words, message):
    assert message in told(*words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: {init_args: {fractoin: 1}}", "There is no option model.fractoin."),
        ("model: {init_args: {masking: {fractoin: 1}}}", "Did you mean model.masking.fraction?"),
        ("data: {init_args: {max_length: x}}", "data.max_length is 'x', but must be a whole number."),
        ("trainer: {max_epoch: 3}", "There is no option trainer.max_epoch. Did you mean trainer.max_epochs?"),
        ("arm: {colour: red}", "There is no option arm.colour. Did you mean arm.color?"),
        ("model: 3", "model is '3', but must be the path of a "),
        ("model: {class_path: 3}", "model is \"{'class_path': 3}\", but must be the path of a "),
        ("model: {init_args: {seed: 3}}", "--model.seed cannot be set: it follows from --seed_everything."),
        (
            "data: {init_args: {tokenizer: {a: 1}}}",
            "--data.tokenizer cannot be set: it follows from --model.backbone, or",
        ),
        ("model: {init_args: {masking: 3}}", "model.init_args.masking in "),
        ("trainer: 3", "mine.yaml is 3, but must be an object of its options."),
        ("early_stopping: null", "mine.yaml is null, but must be an object of its options."),
        ("data: {dict_kwargs: {a: 1}, class_path: datamodules.SST2}", "There is no option data.a. Leave dict_"),
        ("config: {a: 1}", "config cannot be set in "),
        ("overwrite: 3", "overwrite is 3, but must be true or false."),
        ("subcommand: fit", "There is no option subcommand."),
    ],
)
def test_a_mistake_in_a_file_is_told_like_one_on_the_command_line(content, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(content)
    assert message in told("-c", str(tmp_path / "mine.yaml"))
