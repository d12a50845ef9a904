"""`influence predict` on a file gives what the evaluation gave on the same texts."""

import csv
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from integration_helpers import predictions_of

from lightning_app.deploy.predict import predict
from lightning_app.deploy.tables import read_user_table, write_table
from lightning_app.run.trained_run import TrainedRun


@pytest.fixture(scope="module")
def best(study) -> Path:
    return study / "docstrings" / "full_ft" / "seed0" / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def eval_rows(best) -> pa.Table:
    """Return the rows that the study evaluated, in its order."""
    _, held_out = TrainedRun(best).datamodule.load_source()
    rows = predictions_of(best.parents[1])["row"]
    texts = dict(zip(held_out["row"].to_pylist(), held_out["text"].to_pylist(), strict=True))
    return pa.table({"id": [f"{row:05}" for row in rows], "text": [texts[row] for row in rows]})


@pytest.mark.parametrize(("given", "asked"), [(".csv", ".jsonl"), (".jsonl", ".parquet"), (".parquet", ".csv")])
def test_the_labels_of_a_file_are_those_of_the_evaluation(given, asked, best, eval_rows, influence, tmp_path, capsys):
    write_table(tmp_path / f"in{given}", eval_rows)
    assert influence("predict", "--ckpt", best, "--input", f"in{given}", "--output", f"out{asked}") == 0
    written, names = predictions_of(best.parents[1]), TrainedRun(best).datamodule.label_names
    expected = torch.tensor(written["logits"])
    rows = read_user_table(tmp_path / f"out{asked}").to_pylist()
    assert [row["id"] for row in rows] == eval_rows["id"].to_pylist()
    assert [row["text"] for row in rows] == eval_rows["text"].to_pylist()
    assert [row["predicted_label"] for row in rows] == [names[label] for label in expected.argmax(1).tolist()]
    found = torch.tensor([[float(row[f"probability_{name}"]) for name in names] for row in rows])
    torch.testing.assert_close(found, expected.softmax(1), rtol=0, atol=1e-6)
    assert "50 rows; added predicted_label, probability_matplotlib" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {f"in{given}", f"out{asked}"}


@pytest.mark.parametrize("arm", ["influence", "lora"])
def test_the_logits_of_texts_are_those_of_the_evaluation_to_the_bit(arm, study, eval_rows):
    run = TrainedRun(study / "docstrings" / arm / "seed0" / "checkpoints" / "best.ckpt")
    assert predict(run, eval_rows["text"].to_pylist(), "cpu").tolist() == predictions_of(run.folder)["logits"]


def test_rows_come_back_in_their_order_whatever_the_batch_size(best, eval_rows):
    run = TrainedRun(best)
    whole = predict(run, eval_rows["text"].to_pylist(), "cpu")
    run.datamodule.eval_batch_size = 3
    torch.testing.assert_close(predict(run, eval_rows["text"].to_pylist()[::-1], "cpu"), whole.flip(0))


def test_columns_that_are_there_already_are_kept(best, influence, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "a tensor", "predicted_label": "mine", "probability_torch": "2"}\n')
    assert influence("predict", "--ckpt", best, "--input", "in.jsonl", "--output", "out.jsonl") == 0
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert (row["predicted_label"], row["probability_torch"]) == ("mine", "2")
    assert row["predicted_label_2"] in TrainedRun(best).datamodule.label_names
    assert sum(value for name, value in row.items() if re.match("probability_.*_2", name)) == pytest.approx(1)


def test_several_columns_are_read_as_the_datasets_own_are(best, influence, tmp_path):
    rows = [["title", "body"], [" T ", "the body"], ["", "the body"]]
    with (tmp_path / "in.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    words = ["--input", "in.csv", "--output", "out.parquet", "--text_columns", "title", "body"]
    assert influence("predict", "--ckpt", best, *words) == 0
    found = pq.read_table(tmp_path / "out.parquet")["probability_torch"].to_pylist()
    expected = predict(TrainedRun(best), ["T: the body", ": the body"], "cpu").softmax(1)
    assert found == pytest.approx(expected[:, 5].tolist())


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ("text\nfine\n  \n\n", [], "in.csv has no text in text of row 2 (counted from 1; 1 such rows in all)"),
        ("body\nfine\n", [], "in.csv has no column ['text'], only ['body']. Name the text: --text_columns"),
        ("text\n", [], "in.csv has no rows"),
        ("text\na,b\n", [], "Cannot read in.csv as CSV: line 2 has 2 fields, but the first has 1"),
        ("text,text\na,b\n", [], "Cannot read in.csv as CSV: it has several columns called ['text']"),
        ("text\nfine\n", ["--input", "gone.csv"], "There is no file gone.csv"),
        (
            "text\nfine\n",
            ["--input", "in.xlsx"],
            "in.xlsx should be a table, but its name ends in none of .csv",
        ),
        ("text\nfine\n", ["--output", "out.txt"], "out.txt should be a table"),
        ("text\nfine\n", ["--output", "in.csv"], "--output in.csv is there already"),
        ("text\nfine\n", ["--batch_size", "0"], "batch_size"),
        ("text\nfine\n", ["--accelerator", "warp"], "accelerator"),
        ("text\nfine\n", ["--accelerator", "gpu"], "gpu"),
        ("text\nfine\n", ["--ckpt", "gone.ckpt"], "gone.ckpt should be a checkpoint, but is not there"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(content, words, message, best, influence, tmp_path, capsys):
    (tmp_path / "in.csv").write_text(content)
    assert influence("predict", "--ckpt", best, "--input", "in.csv", "--output", "out.csv", *words) == 2
    assert message in capsys.readouterr().err.partition("influence predict: error: ")[2]
    assert {path.name for path in tmp_path.iterdir()} == {"in.csv"}
    assert (tmp_path / "in.csv").read_text() == content
