import re
from pathlib import Path

import pytest
import yaml

from lightning_app.errors import UsageError
from lightning_app.grid.experiment import build_conditions, experiment_folder, parse_options
from lightning_app.run.cli import InfluenceCLI
from lightning_app.run.configs import backbone_options, choose_arm, configs_folder, find_datasets
from modules.backbone import model_type

CONFIGS = configs_folder()
DATASETS = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml"))
ARMS = sorted(path.stem for path in (CONFIGS / "arms").glob("*.yaml"))
OVERLAYS = sorted(path.stem for path in (CONFIGS / "tune").glob("*.yaml"))


def words(dataset: str, arm: str, backbone: str) -> list[str]:
    files = [CONFIGS / "base.yaml", *find_datasets([dataset])[dataset].files, *choose_arm(arm).files]
    return [word for file in files for word in ("-c", str(file))] + [f"--model.backbone={backbone}"]


def test_every_dataset_and_arm_of_the_study_has_a_config():
    assert {"sst2", "agnews", "dbpedia", "yelp", "docstrings"} <= set(DATASETS)
    assert {"baseline", "influence", "lora", "full_ft"} <= set(ARMS)


def test_the_study_holds_every_arm_and_each_mask_with_its_head():
    arms = yaml.safe_load((CONFIGS / "study.yaml").read_text())["arms"]
    assert sorted(arm for arm in arms if "+" not in arm) == ARMS
    masks = {arm for arm in ARMS if choose_arm(arm).arm.role == "mask"}
    assert {arm for arm in arms if "+" in arm} == {f"{arm}+head" for arm in masks} | {"influence+all"}


@pytest.mark.parametrize("arm", [*ARMS, *(f"influence+{overlay}" for overlay in OVERLAYS)])
def test_every_arm_instantiates_and_takes_its_classes_and_seed_from_the_rest(arm, tiny_qwen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = InfluenceCLI([*words("dbpedia", arm, tiny_qwen), "--seed_everything=3"], run=False)
    assert (cli.identity.arm.label, cli.identity.dataset, cli.identity.seed) == (arm, "dbpedia", 3)
    assert cli.identity.arm == choose_arm(arm).arm
    assert cli.model.num_labels == cli.model.head.out_features == 14
    assert cli.model.seed == cli.datamodule.seed == 3
    assert cli.datamodule.tokenizer_path == tiny_qwen
    assert cli.datamodule.train_on == ("head_init" if arm == "baseline" else "train")
    assert cli.trainer.default_root_dir.endswith(f"outputs/single/dbpedia/{arm}/seed3")
    (stopping,) = cli.trainer.early_stopping_callbacks
    assert (stopping.monitor, stopping.patience) == ("val/accuracy", 10 if arm == "baseline_converged" else 3)


@pytest.mark.parametrize(
    ("arm", "trains", "rate"),
    [
        ("baseline", "head", 4e-3),
        ("lora", "adapter", 5e-4),
        ("full_ft", "all", 5e-5),
        ("random+head", "head", 4e-3),
        ("random+all", "all", 5e-5),
        ("random+none", "none", None),
        ("sweep", "none", None),
    ],
)
def test_the_learning_rate_fits_what_trains_unless_one_is_set(arm, trains, rate, tiny_qwen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = InfluenceCLI(words("sst2", arm, tiny_qwen), run=False)
    assert cli.model.trains == trains
    assert cli.config.model.init_args.learning_rate == rate  # as config.yaml has it
    cli = InfluenceCLI([*words("sst2", arm, tiny_qwen), "--model.learning_rate=0.5"], run=False)
    assert cli.model.learning_rate == 0.5


def test_a_family_of_backbones_may_have_options_of_its_own(tiny_qwen, tmp_path, monkeypatch):
    (tmp_path / "backbones").mkdir()
    for name, rate in (("default", 2), ("qwen2", 5)):
        (tmp_path / "backbones" / f"{name}.yaml").write_text(f"learning_rates: {{adapter: {rate}}}")
    monkeypatch.setattr("lightning_app.run.configs.configs_folder", lambda: tmp_path)
    assert backbone_options(model_type(tiny_qwen))["learning_rates"]["adapter"] == 5
    assert backbone_options("unheard_of")["learning_rates"]["adapter"] == 2


def test_a_color_is_not_taken_for_a_comment_of_yaml():
    assert choose_arm("influence").arm.color == "#D55E00"


SAVED = """
arm: influence
trainer:
  callbacks:
    - class_path: lightning_app.checkpoint.BestCheckpoint
    - class_path: lightning.pytorch.callbacks.EarlyStopping
model: {class_path: modules.Influence, init_args: {fraction: 0.05}}
"""


@pytest.mark.parametrize("option", ["-c {}", "--config {}", "--config={}"])
def test_a_configuration_of_an_earlier_version_is_refused_by_one_message_that_names_each_key(option, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(SAVED)
    with pytest.raises(UsageError) as told:
        InfluenceCLI(["fit", *option.format(file).split()])
    for moved in (
        "`arm: NAME` moved to `arm: {name: NAME, role: ROLE}`",
        "the options of masking in model.init_args moved to model.init_args.masking",
        "EarlyStopping in trainer.callbacks moved to early_stopping",
        "lightning_app.checkpoint.* moved to lightning_app.run.checkpoints.*",
    ):
        assert moved in str(told.value)


def test_the_option_of_an_earlier_version_is_refused():
    with pytest.raises(UsageError, match=r"--arm is now --arm\.name"):
        InfluenceCLI(["fit", "--arm", "influence"])


def test_what_has_no_name_is_called_after_its_file_and_a_later_word_overrides(tiny_qwen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("arm: {role: full}\nmodel: {class_path: modules.FullFineTuning}\n")
    Path("films.yaml").write_text("data: {class_path: datamodules.SST2}\n")
    files = ["-c", "configs/base.yaml", "-c", "films.yaml", "-c", "mine.yaml", f"--model.backbone={tiny_qwen}"]
    cli = InfluenceCLI(files, run=False)
    assert (cli.identity.dataset, cli.identity.arm.label) == ("films", "mine")
    cli = InfluenceCLI([*files, "--arm.name=other", "--dataset=short"], run=False)
    assert cli.trainer.default_root_dir.endswith("outputs/single/short/other/seed0")


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_instantiates_under_the_name_of_its_file(dataset, tiny_qwen, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli = InfluenceCLI(words(dataset, "baseline", tiny_qwen), run=False)
    assert cli.datamodule.name == cli.identity.dataset == dataset
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


@pytest.mark.parametrize(("file", "conditions"), [("experiment", 16), ("demo", 5), ("study", 4 * 23 * 5)])
def test_every_experiment_is_a_grid_of_known_conditions(file, conditions):
    options = parse_options(["-c", str(CONFIGS / f"{file}.yaml")])
    assert len(build_conditions(options, experiment_folder(options))) == conditions


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_opens_with_what_it_does_and_the_line_that_launches_it(path):
    header = re.match(r"(#.*\n)+", path.read_text())
    assert header
    assert "#   influence " in header[0]
    assert yaml.safe_load(path.read_text())
