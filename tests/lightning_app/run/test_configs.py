import re

import pytest
import yaml

from lightning_app.grid.experiment import build_conditions, experiment_folder, parse_options
from lightning_app.run.cli import InfluenceCLI
from lightning_app.run.configs import configs_folder

CONFIGS = configs_folder()
DATASETS = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml"))
ARMS = sorted(path.stem for path in (CONFIGS / "arms").glob("*.yaml"))


def words(dataset: str, arm: str, backbone: str) -> list[str]:
    files = [CONFIGS / "base.yaml", CONFIGS / "data" / f"{dataset}.yaml", CONFIGS / "arms" / f"{arm}.yaml"]
    return [word for file in files for word in ("-c", str(file))] + [f"--model.backbone={backbone}"]


def test_every_dataset_and_arm_of_the_study_has_a_config():
    assert {"sst2", "agnews", "dbpedia", "yelp", "docstrings"} <= set(DATASETS)
    assert {"baseline", "influence", "influence_tuned", "lora", "full_ft"} <= set(ARMS)


def test_the_study_holds_every_arm_and_each_mask_with_its_head():
    arms = yaml.safe_load((CONFIGS / "study.yaml").read_text())["arms"]
    assert sorted(arms) == ARMS
    masks = {arm.removesuffix("_head") for arm in arms if arm.endswith("_head")}
    controls = {"influence_highest", "taylor_highest", "random", "random_matched", "magnitude_lowest", "snip_lowest"}
    assert masks == {"influence", "shuffled_labels"} | controls


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.endswith("_head")])
def test_a_head_is_tuned_under_the_mask_of_the_arm_that_it_is_named_after(arm):
    files = [CONFIGS / "arms" / f"{name}.yaml" for name in (arm.removesuffix("_head"), arm)]
    alone, tuned = (yaml.safe_load(file.read_text()) for file in files)
    options = [one["model"]["init_args"] for one in (alone, tuned)]
    for key in ("fraction", "score", "tail"):
        assert options[0][key] == options[1][key]
    assert [one["tune"] for one in options] == ["none", "head"]
    assert alone.get("data") == tuned.get("data")


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_instantiates_and_takes_its_classes_and_seed_from_the_rest(arm, tiny_qwen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = InfluenceCLI([*words("dbpedia", arm, tiny_qwen), "--seed_everything=3"], run=False)
    assert cli.config.arm == arm
    assert cli.model.num_labels == cli.model.head.out_features == 14
    assert cli.model.seed == cli.datamodule.seed == 3
    assert cli.datamodule.tokenizer_path == tiny_qwen
    assert cli.datamodule.train_on == ("head_init" if arm == "baseline" else "train")
    assert cli.trainer.default_root_dir.endswith(f"outputs/single/dbpedia/{arm}/seed3")


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_instantiates_under_the_name_of_its_file(dataset, tiny_qwen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = InfluenceCLI(words(dataset, "baseline", tiny_qwen), run=False)
    assert cli.datamodule.name == cli.config.dataset == dataset
    sizes = cli.datamodule.sizes
    assert (sizes.head_init, sizes.train, sizes.dev, sizes.eval) == (500, 1000, 500, None)


@pytest.mark.parametrize("accelerator", ["cpu", "gpu", "tpu"])
def test_every_accelerator_parses_over_a_condition(accelerator, tiny_qwen):
    class ParseOnly(InfluenceCLI):
        def instantiate_classes(self) -> None:
            return

    files = ["-c", str(CONFIGS / "accelerator" / f"{accelerator}.yaml")]
    cli = ParseOnly([*words("yelp", "lora", tiny_qwen), *files], run=False)
    assert cli.config.trainer.accelerator == accelerator


@pytest.mark.parametrize(("file", "conditions"), [("experiment", 16), ("demo", 5), ("study", 4 * 22 * 5)])
def test_every_experiment_is_a_grid_of_known_conditions(file, conditions):
    options = parse_options(["-c", str(CONFIGS / f"{file}.yaml")])
    assert len(build_conditions(options, experiment_folder(options))) == conditions


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_opens_with_what_it_does_and_the_line_that_launches_it(path):
    header = re.match(r"(#.*\n)+", path.read_text())
    assert header
    assert "#   influence " in header[0]
    assert yaml.safe_load(path.read_text())
