"""Names cannot lead out of the folder of results, and links are not written through."""

import json
import shutil
from pathlib import Path

import pytest

from datamodules import DataError, HubTextDataModule
from lightning_app.report import load_results, write_report
from lightning_app.run.cli import InfluenceCLI

CLIMBING = ["../../climbed", "/tmp/climbed", "a/b", "a\\b", "C:climbed", "", ".", "..", " a", "a\nb", "a\x1b[2J"]


@pytest.mark.parametrize("name", CLIMBING)
@pytest.mark.parametrize("option", ["--experiment", "--dataset", "--arm.name"])
def test_a_run_is_not_placed_by_a_name_that_leads_elsewhere(option, name, words, refused, tmp_path):
    before = set(tmp_path.rglob("*"))
    told = refused("fit", *words("baseline", f"{option}={name}"))
    assert told.startswith(f"{option} is {name!r}, but must be the name of a folder")
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", CLIMBING)
def test_an_experiment_is_not_placed_by_a_name_that_leads_elsewhere(name, refused, tmp_path):
    (tmp_path / "mine.yaml").write_text(json.dumps({"name": name, "datasets": ["docstrings"]}))
    told = refused("experiment", "-c", tmp_path / "mine.yaml")
    assert f"--name is {name!r}, but must be the name of a folder" in told
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize("option", ["--datasets", "--arms", "--accelerator"])
def test_an_experiment_knows_its_datasets_and_arms_by_name_alone(option, refused, tmp_path):
    (tmp_path / "x.yaml").write_text("arm: x\n")
    assert f"'{tmp_path}/x'" in refused("experiment", option, tmp_path / "x")
    assert not list(tmp_path.rglob("x/*"))


def test_a_seed_is_a_number(refused, words):
    assert "seed" in refused("fit", *words("baseline", "--seed_everything=../../x"))
    assert "seeds" in refused("experiment", "--seeds", "../x")


def test_a_name_with_letters_of_any_language_and_signs_is_allowed(words, influence, tmp_path):
    cli = InfluenceCLI(words("baseline", "--experiment=Größe 2.0_a-b+c"), run=False)
    assert Path(cli.trainer.default_root_dir).parts[:2] == ("outputs", "Größe 2.0_a-b+c")


@pytest.mark.parametrize("name", [*CLIMBING, "x" * 101])
def test_a_dataset_does_not_name_its_cache_elsewhere(name, tmp_path):
    with pytest.raises(DataError, match=r"name is .*, but must be up to 100 letters"):
        HubTextDataModule("some/tokenizer", "some/path", name, ["a", "b"], cache_dir=tmp_path)


@pytest.mark.parametrize("folder", ["tables", "figures", "dashboard"])
def test_a_report_is_not_written_through_a_link(folder, study, tmp_path, refused):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(study / folder)
    (study / folder).symlink_to(elsewhere)
    assert f"{study / folder} is a symbolic link" in refused("report", "--results", study)
    assert not list(elsewhere.iterdir())


def test_a_report_that_is_a_link_is_replaced_and_what_it_led_to_stays(study, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (study / "report.md").unlink()
    (study / "report.md").symlink_to(tmp_path / "mine.txt")
    write_report(study)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (study / "report.md").is_symlink()


def test_a_results_folder_on_another_disk_is_followed(study, tmp_path):
    (study / "docstrings").rename(tmp_path / "other disk")
    (study / "docstrings").symlink_to(tmp_path / "other disk")
    assert list(load_results(study)["arm"]) == ["baseline", "influence", "lora"]
