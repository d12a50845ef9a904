"""Broken files of results: refused by name, or read as if they were whole."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import rc_context
from mutations import broken_bytes, broken_values, examples, read_broken

from lightning_app.errors import UsageError
from lightning_app.grid.experiment import build_conditions, parse_options
from lightning_app.report.figures import MATPLOTLIB_STYLE
from lightning_app.report.sections import Study, build_page
from lightning_app.results.metrics import METRICS
from lightning_app.results.predictions import read_evaluation
from lightning_app.results.records import read_condition, read_fit, read_metrics, read_sweep

many = examples(500)
few = examples(40)

READERS = {
    "metrics.json": read_metrics,
    "condition.json": read_condition,
    "fit.json": read_fit,
    "sweep.json": read_sweep,
}


@pytest.fixture
def run(study: Path) -> Path:
    """Return the folder of a condition that has a mask."""
    return study / "docstrings" / "influence" / "seed0"


def as_bytes(content: Any) -> bytes:
    """Return bytes as they are, and what JSON can hold as JSON."""
    return content if isinstance(content, bytes) else json.dumps(content).encode()


def read_or_refuse(file: Path, content: Any, read: Any) -> Any:
    """Return what is read of a broken file; None if it is refused by name."""
    found, refusal = read_broken(file, as_bytes(content), read)
    assert refusal is None or file.name in refusal
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, and of one type."""
    return json.dumps(one) == json.dumps(other)


@pytest.mark.parametrize("name", READERS)
@many
@given(data=st.data())
def test_a_broken_record_is_refused_or_says_what_may_be_said(name, run, data):
    file = (run.parents[1] / "sweep" / "seed0" if name == "sweep.json" else run) / name
    whole = READERS[name](file)
    content = file.read_bytes()
    by_bytes = data.draw(st.booleans())
    broken = data.draw(broken_bytes(content) if by_bytes else broken_values(json.loads(content)))
    found = read_or_refuse(file, broken, READERS[name])
    if found is None:
        return
    if name == "condition.json":
        assert found["digest"] == whole["digest"]
    if name == "metrics.json":  # what fit.json and the folder say as well cannot be changed
        again = set(read_fit(run / "fit.json")) - {"seconds"} | {"arm", "seed"}
        assert all(same(found[key], whole[key]) for key in again)
    for key, value in found.items() if isinstance(found, dict) else ():
        assert METRICS[key].admits(value) if key in METRICS else not isinstance(value, float) or math.isfinite(value)


@many
@given(data=st.data())
def test_metrics_that_predictions_do_not_give_are_refused(run, data):
    file, whole = run / "metrics.json", read_metrics(run / "metrics.json")
    before = read_evaluation(run)
    found = read_or_refuse(
        file,
        data.draw(broken_values(json.loads(file.read_bytes()))),
        lambda path: (read_metrics(path), read_evaluation(run)),
    )
    if found is not None:
        metrics, evaluation = found
        for name in METRICS:  # one that is missing comes from the predictions
            assert metrics.get(name, whole[name]) == pytest.approx(whole[name], rel=2e-5, abs=2e-6)
            np.testing.assert_array_equal(evaluation.values[name], before.values[name])


@many
@given(data=st.data())
def test_predictions_with_broken_bytes_are_refused_or_read_as_they_were(run, data):
    file, before = run / "predictions.parquet", read_evaluation(run)
    found = read_or_refuse(file, data.draw(broken_bytes(file.read_bytes())), lambda path: read_evaluation(run))
    if found is not None:
        np.testing.assert_array_equal(found.rows, before.rows)
        np.testing.assert_array_equal(found.labels, before.labels)
        for name, values in before.values.items():
            np.testing.assert_array_equal(found.values[name], values)


def with_column(name: str, change: Any) -> Any:
    """Return a change of one column of the predictions."""
    return lambda table: table.set_column(table.column_names.index(name), name, change(table.column(name)))


def logits(change: Any) -> Any:
    """Return a change of the logits, as an array [rows, classes]."""
    return with_column("logits", lambda column: pa.array(list(change(np.array(column.to_pylist())))))


def put(array: np.ndarray, value: float) -> np.ndarray:
    array[3, 1] = value
    return array


BROKEN_TABLES = {
    "a row twice": lambda t: pa.concat_tables([t, t.slice(0, 1)]),
    "a row missing": lambda t: t.slice(1),
    "no row": lambda t: t.slice(0, 0),
    "a row id twice": with_column("row", lambda c: pa.array([c[1].as_py(), *c.to_pylist()[1:]])),
    "row ids that are texts": with_column("row", lambda c: c.cast(pa.string())),
    "row ids that are floats": with_column("row", lambda c: c.cast(pa.float64())),
    "a row id of null": with_column("row", lambda c: pa.array([None, *c.to_pylist()[1:]])),
    "no column of labels": lambda t: t.drop_columns("label"),
    "labels twice": lambda t: t.append_column("label", t.column("label")),
    "a label out of range": with_column("label", lambda c: pa.array([7, *c.to_pylist()[1:]])),
    "a negative label": with_column("label", lambda c: pa.array([-1, *c.to_pylist()[1:]])),
    "other labels": with_column("label", lambda c: pa.array([(x.as_py() + 1) % 7 for x in c])),
    "unsigned labels": with_column("label", lambda c: c.cast(pa.uint64())),
    "labels that are booleans": with_column("label", lambda c: pa.array([True] * len(c))),
    "a logit of NaN": logits(lambda a: put(a, np.nan)),
    "an infinite logit": logits(lambda a: put(a, np.inf)),
    "an enormous logit": logits(lambda a: put(a, 1e308)),
    "a class less": logits(lambda a: a[:, :-1]),
    "a class more": logits(lambda a: np.pad(a, ((0, 0), (0, 1)))),
    "classes swapped": logits(lambda a: a[:, ::-1]),
    "one class": logits(lambda a: a[:, :1]),
    "no class": with_column("logits", lambda c: pa.array([[]] * len(c), pa.list_(pa.float64()))),
    "logits of ints": with_column("logits", lambda c: pa.array([[1, 2]] * len(c))),
    "logits of lists": with_column("logits", lambda c: pa.array([[[1.0]]] * len(c))),
    "logits that are numbers": with_column("logits", lambda c: pa.array([1.0] * len(c))),
    "logits with a null": with_column("logits", lambda c: pa.array([[None] * 7, *c.to_pylist()[1:]])),
    "logits that are null": with_column("logits", lambda c: pa.array([None, *c.to_pylist()[1:]])),
    "other columns": lambda t: pa.table({"a": [1], "b": [2]}),
}


@pytest.mark.parametrize("change", BROKEN_TABLES.values(), ids=BROKEN_TABLES)
def test_predictions_of_another_shape_are_refused(change, run):
    file = run / "predictions.parquet"
    pq.write_table(change(pq.read_table(file)), file)
    with pytest.raises(UsageError, match=r"predictions\.parquet|Predictions of docstrings/influence/seed0"):
        read_evaluation(run)


def test_a_column_more_and_rows_in_another_order_change_nothing(run):
    file, before = run / "predictions.parquet", read_evaluation(run)
    table = pq.read_table(file)
    pq.write_table(
        table.append_column("note", pa.array(["x"] * len(table))).take(list(reversed(range(len(table))))), file
    )
    after = read_evaluation(run)
    assert after.rows.tolist() == before.rows.tolist()
    assert all(after.values[name].tolist() == before.values[name].tolist() for name in before.values)


@few
@given(data=st.data())
def test_a_report_of_a_broken_file_is_refused_or_made(study, run, data):
    """No reader of these files may meet what the check let through and fail on it."""
    name = data.draw(st.sampled_from([*READERS, "predictions.parquet", "mask.safetensors"]))
    file = (run.parents[1] / "sweep" / "seed0" if name == "sweep.json" else run) / name
    whole = file.read_bytes()
    broken = data.draw(broken_values(json.loads(whole)) if name.endswith(".json") else broken_bytes(whole))
    with rc_context(MATPLOTLIB_STYLE):
        read_broken(file, as_bytes(broken), lambda _: build_page(Study.read(study)))


@examples(200)
@given(data=st.data())
def test_broken_metrics_are_not_complete_and_never_stop_an_experiment(experiment_words, study, run, data):
    condition = next(c for c in build_conditions(parse_options(experiment_words), study) if c.arm == "influence")
    file = run / "metrics.json"
    assert condition.is_complete
    broken = as_bytes(data.draw(broken_bytes(file.read_bytes()) | broken_values(json.loads(file.read_bytes()))))
    complete, _ = read_broken(file, broken, lambda _: condition.is_complete)
    _, refusal = read_broken(file, broken, read_metrics)
    assert complete == (refusal is None)


@pytest.mark.parametrize("name", ["metrics.json", "predictions.parquet"])
def test_a_file_that_would_never_end_is_refused(name, run):
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(UsageError, match=name):
        read_evaluation(run)
