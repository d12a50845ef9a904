import json

import pytest
from filelock import FileLock
from jsonargparse import ArgumentError

from lightning_app.errors import UsageError
from lightning_app.grid.condition import CONDITION_FILE, command_line
from lightning_app.grid.experiment import (
    build_conditions,
    check_settings,
    experiment_folder,
    main,
    parse_options,
    run_conditions,
)
from lightning_app.grid.workers import InProcess


def conditions_of(*words: str):
    options = parse_options(list(words))
    return build_conditions(options, experiment_folder(options))


def test_the_grid_has_every_condition_with_the_baseline_of_a_dataset_and_seed_first():
    conditions = conditions_of("--datasets", "sst2", "yelp", "--arms", "lora", "baseline", "--seeds", "0", "1")
    assert [str(c) for c in conditions] == [
        "sst2/baseline/seed0",
        "sst2/lora/seed0",
        "sst2/baseline/seed1",
        "sst2/lora/seed1",
        "yelp/baseline/seed0",
        "yelp/lora/seed0",
        "yelp/baseline/seed1",
        "yelp/lora/seed1",
    ]


def test_the_baseline_is_added_where_it_was_not_asked_for():
    assert [c.arm for c in conditions_of("--datasets", "sst2", "--arms", "influence")] == ["baseline", "influence"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--datasets", "sst"), r"Unknown dataset 'sst'\. Did you mean sst2\? There are: agnews, dbpedia"),
        (("--arms", "influense"), r"Unknown arm 'influense'\. Did you mean influence"),
        (("--accelerator", "gpus"), r"Unknown accelerator 'gpus'\. Did you mean gpu"),
    ],
)
def test_an_unknown_name_lists_near_misses(words, message):
    with pytest.raises(UsageError, match=message):
        conditions_of(*words)


def test_quick_runs_have_fifty_samples_a_split_and_a_folder_of_their_own():
    condition = conditions_of("--datasets", "sst2", "--quick")[0]
    assert {f"--data.{split}_size=50" for split in ("head_init", "train", "dev", "eval")} <= set(condition.args)
    assert condition.folder.parents[2].name == "experiment-Qwen2-0.5B-quick"


def test_a_setting_may_be_for_one_arm_alone():
    conditions = conditions_of("--datasets", "sst2", "--set", "influence:data.calibration_size=64")
    assert {c.arm for c in conditions if "--data.calibration_size=64" in c.args} == {"influence"}


def test_settings_of_the_command_line_add_to_those_of_a_config(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("datasets: [sst2]\narms: [lora]\nset: [data.max_length=64]\n")
    for words in (["--set", "a.b=1", "c.d=[2, 3]"], ["--set=a.b=1", "--set", "c.d=[2, 3]"]):
        condition = conditions_of("-c", str(file), *words)[1]
        assert condition.args[1:] == ("--data.max_length=64", "--a.b=1", "--c.d=[2, 3]")


def test_a_config_with_a_name_where_a_list_belongs_is_told(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("datasets: sst2\n")
    with pytest.raises(ArgumentError, match=r'key "datasets":\s+Expected a <class \'list\'>\. Got value: sst2'):
        conditions_of("-c", str(file))
    with pytest.raises(UsageError, match="--seeds is empty"):
        conditions_of("--seeds", "--quick")


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(conditions_of("-c", "configs/demo.yaml")) == 5
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").write_text("datasets: [sst2]\narms: [lora]\n")
    assert len(conditions_of("-c", "configs/demo.yaml")) == 2  # the user's own file comes first


def test_a_condition_runs_by_the_words_of_influence_fit():
    words = command_line(conditions_of("--datasets", "sst2", "--seeds", "7", "--set", "model.weight_decay=0")[0])
    assert [word.rsplit("/", 1)[-1] for word in words[1:6:2]] == ["base.yaml", "sst2.yaml", "baseline.yaml"]
    assert {"--seed_everything=7", "--model.weight_decay=0", "--outputs=outputs"} <= set(words)


def test_complete_results_of_other_settings_are_not_mixed_in(tmp_path, write):
    def grid(*words: str):
        return conditions_of("--outputs", str(tmp_path), "--datasets", "sst2", "--arms", "baseline", *words)

    made = grid()[0]
    write.condition(made.folder.parents[2], "sst2", "baseline", 0, 0.5)
    with pytest.raises(UsageError, match=r"it has no condition\.json, so no experiment made it"):
        check_settings(grid())
    (made.folder / CONDITION_FILE).write_text(json.dumps({"digest": made.digest(), "settings": made.settings()}))

    check_settings(grid())
    with pytest.raises(UsageError, match=r"other settings.*data\.train_size=200.*--name, or --overwrite"):
        check_settings(grid("--set", "data.train_size=200"))


@pytest.mark.parametrize("content", ["", '{"accuracy": 0.5', "[1]", '{"dataset": "sst2"}'])
def test_a_condition_with_damaged_metrics_is_not_complete(content, tmp_path):
    condition = conditions_of("--outputs", str(tmp_path), "--datasets", "sst2")[0]
    assert not condition.is_complete
    condition.folder.mkdir(parents=True)
    (condition.folder / "metrics.json").write_text(content)
    assert not condition.is_complete


def test_two_experiments_do_not_share_a_folder(tmp_path):
    words = ["--outputs", str(tmp_path), "--datasets", "sst2", "--name", "mine"]
    (tmp_path / "mine").mkdir()
    with (
        FileLock(tmp_path / "mine" / ".lock"),
        pytest.raises(UsageError, match=r"Another experiment is running in .*mine.*--name"),
    ):
        main(words, report=str)


def test_a_traceback_that_cannot_be_kept_is_printed_and_costs_nothing(tmp_path, monkeypatch, capsys):
    def fail(condition, verbose):
        raise RuntimeError("the machine is on fire")

    monkeypatch.setattr("lightning_app.grid.condition.run_condition", fail)
    conditions = conditions_of("--outputs", str(tmp_path), "--datasets", "sst2", "--name", "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "errors").write_text("a file where a folder should be")
    failures = run_conditions(conditions, conditions, {}, InProcess())
    assert len(failures) == len(conditions)
    assert all("on fire" in reason and "could not be written" in reason for reason in failures.values())
    assert "Traceback" in capsys.readouterr().err
