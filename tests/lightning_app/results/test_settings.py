"""Two conditions have the same settings where nothing differs that can change a result."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_app.results.settings import describe_difference, merge_settings, settings_digest

BASE = {
    "data": {"class_path": "datamodules.SST2", "init_args": {"max_length": 64, "data_files": {"train": "a.csv"}}},
    "trainer": {
        "max_epochs": 3,
        "logger": {"class_path": "TensorBoardLogger"},
        "callbacks": [{"class_path": "a.Best"}],
    },
}


def settings(*overrides: str, configs=(BASE,)) -> dict:
    return {"configs": list(configs), "overrides": list(overrides)}


@pytest.mark.parametrize(
    "same",
    [
        settings("--data.max_length=64"),
        settings("--data.init_args.max_length=64"),
        settings("--data.max_length=8", "--data.max_length=64.0"),
        settings("--trainer.logger=false"),
        settings("--trainer.logger.init_args.name=x"),
        settings("--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"),
        settings("--trainer.enable_model_summary=true", "--trainer.default_root_dir=x"),
        settings("--outputs=x", "--experiment=y", "--data.cache_dir=z", "--data.num_workers=3", "--arm.color=red"),
        settings("--trainer.callbacks+={class_path: lightning.pytorch.callbacks.RichProgressBar}"),
        settings(configs=[{"trainer": BASE["trainer"]}, {"data": BASE["data"]}]),
        settings(configs=[{"data": {"init_args": {"max_length": 8}}}, BASE]),
    ],
)
def test_what_changes_no_result_is_no_other_setting(same):
    assert settings_digest(same) == settings_digest(settings())
    assert describe_difference(settings(), same) == ""


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (settings("--data.max_length=65"), "data.max_length was 64, now it is 65"),
        (settings("--model.learning_rate=5e-5"), "model.learning_rate was not set, now it is 5e-05"),
        (settings("--data.text=007"), 'data.text was not set, now it is "007"'),
        (settings("--trainer.max_epochs=null"), "trainer.max_epochs was 3, now it is null"),
        (
            settings("--trainer.callbacks+={class_path: b.Swa}"),
            'trainer.callbacks was [{"class_path": "a.Best"}], '
            'now it is [{"class_path": "a.Best"}, {"class_path": "b.Swa"}]',
        ),
        (
            settings("--data.data_files={test: b.csv}"),
            'data.data_files was {"train": "a.csv"}, now it is {"test": "b.csv"}',
        ),
        (
            settings("--data.a=1", "--data.b=[x, 2]"),
            'data.a was not set, now it is 1; data.b was not set, now it is ["x", 2]',
        ),
    ],
)
def test_a_difference_is_named_by_key_with_both_values(other, difference):
    assert settings_digest(other) != settings_digest(settings())
    assert describe_difference(settings(), other) == difference


KEYS = st.sampled_from(["model.a", "model.b", "trainer.c"])


@given(st.dictionaries(KEYS, st.integers() | st.floats(0, 1) | st.booleans()))
def test_options_and_files_that_set_the_same_are_the_same(values):
    nested = {section: {} for section in ("model", "trainer")}
    for key, value in values.items():
        section, _, name = key.partition(".")
        nested[section][name] = value
    configs = [{section: content} for section, content in nested.items() if content]
    words = [f"--{key}={json.dumps(value)}" for key, value in values.items()]
    assert merge_settings(settings(*words, configs=[])) == merge_settings(settings(configs=configs))
