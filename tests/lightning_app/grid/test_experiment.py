import json
import re

import pytest
from filelock import FileLock

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


def arm_file(path, role: str, starts_from: str | None = None, **block: str) -> str:
    """Write the file of an arm; return its path."""
    arm = {"role": role, "starts_from": starts_from, **block}
    path.write_text(json.dumps({"arm": arm, "model": {"class_path": "modules.Baseline"}}))
    return str(path)


def test_the_arm_that_others_start_from_is_added_before_them(tmp_path):
    def arms(*words: str) -> list[str]:
        return [c.arm for c in conditions_of("--datasets", "sst2", "--arms", *words)]

    assert arms("influence", "lora") == ["baseline", "influence", "lora"]
    assert arms("baseline_converged") == ["baseline_converged"]
    arm_file(tmp_path / "warm.yaml", "baseline")
    mine = arm_file(tmp_path / "mine.yaml", "full", "warm")
    assert arms(mine, "lora") == ["warm", "mine", "baseline", "lora"]
    with pytest.raises(UsageError, match=r"role full\. Set starts_from to an arm of role baseline"):
        arms(arm_file(tmp_path / "late.yaml", "full", "mine"))
    with pytest.raises(UsageError, match="one starts from other starts from one"):
        arms(arm_file(tmp_path / "one.yaml", "baseline", "other"), arm_file(tmp_path / "other.yaml", "baseline", "one"))


def test_an_arm_begins_after_the_one_that_it_starts_from(tmp_path):
    arm_file(tmp_path / "warm.yaml", "baseline")
    words = ["--datasets", "sst2", "yelp", "--arms", arm_file(tmp_path / "mine.yaml", "full", "warm"), "lora"]
    conditions = {str(c): c for c in conditions_of(*words)}
    mine = conditions["sst2/mine/seed0"]
    assert [name for name, c in conditions.items() if mine.begins_from(c)] == ["sst2/warm/seed0"]
    assert mine.start == "sst2/warm/seed0/start.safetensors"
    assert conditions["sst2/warm/seed0"].start is None


def test_an_overlay_is_laid_over_an_arm():
    condition = conditions_of("--datasets", "sst2", "--arms", "random+head", "--set", "random+head:model.seed=1")[1]
    assert condition.folder.parts[-2:] == ("random+head", "seed0")
    assert [path.name for path in condition.configs[-2:]] == ["random.yaml", "head.yaml"]
    assert "--model.seed=1" in condition.args
    assert {"--arm.name=random", "--arm.overlay=head"} <= set(command_line(condition))


def test_datasets_and_arms_are_called_what_their_files_call_them(tmp_path):
    (tmp_path / "a.yaml").write_text("dataset: films\ndata: {class_path: datamodules.SST2}\n")
    (tmp_path / "b.yaml").write_text("data: {class_path: datamodules.SST2}\n")
    mine = arm_file(tmp_path / "c.yaml", "baseline", name="warm")
    data = [str(tmp_path / name) for name in ("a.yaml", "b.yaml")]
    conditions = conditions_of("--datasets", *data, "--arms", mine, f"{mine}+head")
    assert [str(c) for c in conditions] == [
        "films/warm/seed0",
        "films/warm+head/seed0",
        "b/warm/seed0",
        "b/warm+head/seed0",
    ]
    assert conditions[0].record()["typed"] == {"dataset": data[0], "arm": mine}


@pytest.mark.parametrize("what", ["datasets", "arms"])
def test_two_files_of_one_name_are_refused(what, tmp_path):
    (tmp_path / "mine.yaml").write_text("dataset: sst2\narm: {name: lora, role: adapter}\n")
    known = {"datasets": "sst2", "arms": "lora"}
    words = {"datasets": ["sst2"], "arms": ["lora"]} | {what: [known[what], str(tmp_path / "mine.yaml")]}
    with pytest.raises(UsageError, match=f"are both called '{known[what]}'. Give one of them another name"):
        conditions_of("--datasets", *words["datasets"], "--arms", *words["arms"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("influence_tuned", "influence+all"),
        ("influence_head", "influence+head"),
        ("random_matched_head", "random_matched+head"),
    ],
)
def test_the_old_name_of_an_arm_is_refused_with_the_new_one(old, new):
    for words in (["--arms", old], ["--set", f"{old}:model.seed=1"]):
        with pytest.raises(UsageError, match=re.escape(f"The arm {old!r} is now called {new!r}.")):
            conditions_of("--datasets", "sst2", *words)


def test_a_setting_for_an_arm_that_is_not_run_is_refused():
    words = ["--datasets", "sst2", "--arms", "lora", "--set", "influence:model.masking.fraction=0.1"]
    with pytest.raises(UsageError, match=r"for an arm that is not run\. The arms of this .* are baseline, lora\. Add"):
        conditions_of(*words)
    assert conditions_of(*words[:3], "lora", "influence", *words[4:])


@pytest.mark.parametrize("key", ["seed_everything", "dataset", "arm.name", "outputs"])
def test_what_the_grid_decides_cannot_be_set(key):
    with pytest.raises(UsageError, match=f"--set {key}=1: an experiment has --datasets"):
        conditions_of("--datasets", "sst2", "--set", f"{key}=1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--datasets", "sst"), r"Unknown dataset 'sst'\. Did you mean sst2\? There are: agnews, dbpedia"),
        (("--arms", "influense"), r"Unknown arm 'influense'\. Did you mean influence"),
        (("--accelerator", "gpus"), r"Unknown accelerator 'gpus'\. Did you mean gpu"),
        (("--accelerator", "cuda"), r"Unknown accelerator 'cuda'\. Did you mean gpu\?"),
        (("--accelerator", "XLA"), r"Unknown accelerator 'XLA'\. Did you mean tpu\?"),
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
    with pytest.raises(UsageError, match=r"datasets is 'sst2', but must be a list\."):
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
    record = made.record()
    (made.folder / CONDITION_FILE).write_text(json.dumps(record))

    check_settings(grid())
    with pytest.raises(UsageError, match=r"data\.train_size was not set, now it is 200\. .*--name, or --overwrite"):
        check_settings(grid("--set", "data.train_size=200"))
    for setting, message in (
        ("data.train_sise=200", r"Arm baseline: There is no option data\.train_sise\. Did you mean data\.train_size\?"),
        ("data.train_size=many", r"Arm baseline: data\.train_size is 'many', but must be a whole number\."),
        ("trainer.max_epochs=-2", r"Arm baseline: trainer\.max_epochs is -2, but must be -1 or more"),
    ):  # what can never run is not compared
        with pytest.raises(UsageError, match=message):
            check_settings(grid("--set", setting))
    del record["typed"]
    (made.folder / CONDITION_FILE).write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"was made by an earlier version.*--name, or --overwrite"):
        check_settings(grid())


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
    def fail(condition, caches, verbose):
        raise RuntimeError("the machine is on fire")

    monkeypatch.setattr("lightning_app.grid.condition.run_condition", fail)
    words = ["--outputs", str(tmp_path), "--name", "mine", "--seeds", "0", "1", "--arms", "lora", "full_ft"]
    conditions = conditions_of("--datasets", "sst2", *words)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "errors").write_text("a file where a folder should be")
    failures = run_conditions(conditions, conditions, {}, InProcess())
    assert [condition.arm for condition in failures] == ["baseline", "baseline"]
    assert all("on fire" in reason and "could not be written" in reason for reason in failures.values())
    assert all(reason.endswith(" Not run, because they start from it: lora, full_ft.") for reason in failures.values())
    output = capsys.readouterr()
    assert "Traceback" in output.err
    assert "lora" not in output.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "1"], "There is no option seed. Did you mean seeds?"),
        (["--seeds", "one"], "seeds is 'one', but must be a whole number."),
        (["--devices", "0"], "devices is '0', but must be a whole number above 0."),
    ],
)
def test_a_mistake_in_an_option_is_told_in_one_line(words, message):
    with pytest.raises(UsageError) as told:
        conditions_of(*words)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_a_file_that_describes_no_arm_is_told(tmp_path):
    mine = tmp_path / "mine.yaml"
    for content, message in (
        ("arm: {role: king}", "arm.role is 'king', but must be baseline or mask"),
        ("arm: {role: mask, colour: red}", "There is no option arm.colour. Did you mean arm.color?"),
        ("model: {class_path: modules.LoRA}", "arm.role"),
        ("arm: mine", "`arm: NAME` moved to"),
    ):
        mine.write_text(content)
        with pytest.raises(UsageError, match=re.escape(message)):
            conditions_of("--datasets", "sst2", "--arms", str(mine))
