from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from lightning_app.report import write_report
from lightning_app.results.files import read_json, write_json
from lightning_app.results.markdown import condition_card


def read(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run)).Reload()


@pytest.fixture
def study(tmp_path: Path, write) -> Path:
    folder = write.study(tmp_path / "outputs" / "study", "sst2", baseline=0.75, influence=0.52)
    write.curves(folder / "sst2" / "baseline" / "seed0", val__accuracy={9: 0.5, 19: 0.7})
    write.curves(folder / "sst2" / "baseline" / "seed1", val__accuracy={9: 0.7})
    write_report(folder)
    return folder


def test_the_scores_of_an_arm_are_one_run_with_a_point_a_seed(study):
    points = read(study / "dashboard" / "influence").Scalars("accuracy/sst2")
    assert [(point.step, round(point.value, 3)) for point in points] == [(0, 0.52), (1, 0.521), (2, 0.522)]


def test_curves_are_means_over_the_seeds_that_have_the_step(study):
    points = read(study / "dashboard" / "baseline").Scalars("dev_accuracy/sst2")
    assert [(point.step, round(point.value, 3)) for point in points] == [(9, 0.6), (19, 0.7)]


def test_every_chart_of_a_page_shows_a_tag_that_is_there(study):
    overview = read(study / "dashboard" / "overview")
    layout = layout_pb2.Layout.FromString(overview.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["sst2"]
    shown = {tag.strip("^$") for chart in layout.category[0].chart for tag in chart.multiline.tag}
    assert shown == set(read(study / "dashboard" / "baseline").Tags()["scalars"])


def test_a_new_report_replaces_the_runs_of_the_last(study):
    write_report(study)
    assert len(list((study / "dashboard" / "baseline").iterdir())) == 1


def test_a_dataset_whose_name_climbs_out_of_the_folder_stays_in_it(study):
    for metrics in study.glob("sst2/influence/seed*/metrics.json"):
        write_json(metrics, read_json(metrics) | {"dataset": "../../../outside"})
    write_report(study)
    assert not list(study.parents[1].rglob("*outside*"))
    assert "accuracy/_outside" in read(study / "dashboard" / "influence").Tags()["scalars"]


def test_a_condition_is_told_as_text_and_not_as_markup():
    assert "&lt;b>x\\|y" in condition_card({"dataset": "<b>x|y"})
