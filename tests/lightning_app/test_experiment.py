import json

import pytest

from lightning_app.errors import UsageError
from lightning_app.experiment import (
    CONDITION_FILE,
    build_conditions,
    build_parser,
    check_settings,
    command_line,
    experiment_folder,
)


def conditions_of(*words: str):
    options = build_parser().parse_args(list(words))
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


def test_calibration_samples_reach_the_masking_arms_alone():
    conditions = conditions_of("--datasets", "sst2", "--calibration_samples", "64")
    assert {c.arm for c in conditions if "--model.num_samples=64" in c.args} == {"influence"}


def test_a_condition_runs_by_the_words_of_influence_fit():
    words = command_line(conditions_of("--datasets", "sst2", "--seeds", "7", "--set", "model.weight_decay=0")[0])
    assert [word.rsplit("/", 1)[-1] for word in words[1:6:2]] == ["base.yaml", "sst2.yaml", "baseline.yaml"]
    assert {"--seed_everything=7", "--model.weight_decay=0", "--outputs=outputs"} <= set(words)


def test_complete_results_of_other_settings_are_not_mixed_in(tmp_path):
    def grid(*words: str):
        return conditions_of("--outputs", str(tmp_path), "--datasets", "sst2", "--arms", "baseline", *words)

    made = grid()[0]
    made.folder.mkdir(parents=True)
    (made.folder / "metrics.json").write_text("{}")
    (made.folder / CONDITION_FILE).write_text(json.dumps({"digest": made.digest(), "settings": made.settings()}))

    check_settings(grid())
    with pytest.raises(UsageError, match=r"other settings.*data\.train_size=200.*--name, or --overwrite"):
        check_settings(grid("--set", "data.train_size=200"))
