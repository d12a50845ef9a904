"""Datasets of one's own: local files, named by arguments alone."""

import json

import pyarrow.parquet as pq
import pytest

from datamodules import DataError, HubTextDataModule

NAMES = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def make_module(tokenizer_folder, tmp_path):
    def make(path, data_files=None, **kwargs):
        defaults = {"head_init_size": 50, "train_size": 200, "dev_size": 60, "cache_dir": tmp_path / "cache"}
        arguments = {"name": "mine", "label_names": NAMES, "data_files": data_files, **defaults, **kwargs}
        return HubTextDataModule(tokenizer_folder, path, **arguments)

    return make


@pytest.fixture
def files(tmp_path, toy_table):
    """The toy rows in three formats, one of them with the names of the labels."""
    for split, table in (("train", toy_table(600, 0)), ("test", toy_table(100, 1))):
        pq.write_table(table, tmp_path / f"{split}.parquet")
        table.to_pandas().to_csv(tmp_path / f"{split}.csv", index=False)
        named = [{"text": row["text"], "label": NAMES[row["label"]]} for row in table.to_pylist()]
        (tmp_path / f"{split}.json").write_text("\n".join(map(json.dumps, named)))
    return lambda ending: {split: str(tmp_path / f"{split}.{ending}") for split in ("train", "test")}


def test_csv_json_lines_and_parquet_give_the_same_splits(make_module, files):
    modules = [make_module(ending, files(ending)) for ending in ("csv", "json", "parquet")]
    for module in modules:
        module.setup()
    assert len({module.fingerprint for module in modules}) == 1
    assert modules[0].split_sizes == {"head_init": 50, "train": 200, "dev": 60, "eval": 100}


def test_names_and_labels_are_known_before_anything_is_read(make_module):
    module = make_module("csv", eval_split="held_out")
    assert (module.name, module.num_labels, module.label_names) == ("mine", 3, NAMES)
    assert module.eval_split_name == "held_out"


def test_several_text_columns_are_trimmed_and_joined(make_module, tmp_path):
    lines = [json.dumps({"title": f"T{row}", "body": " some words ", "label": row % 3}) for row in range(90)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text("\n".join(lines))
    files = {split: str(tmp_path / f"{split}.json") for split in ("train", "test")}
    pool, _ = make_module("json", files, text_columns=["title", "body"]).load_source()
    assert pool.column("text")[4].as_py() == "T4: some words"
    assert pool.column("row").to_pylist() == list(range(90))


def test_missing_texts_and_labels_are_empty_and_unlabelled(make_module, tmp_path):
    file = tmp_path / "rows.json"
    rows = [{"text": None, "label": 1}, {"text": "x", "label": None}, {"text": "y", "label": 2}]
    file.write_text("\n".join(map(json.dumps, rows)))
    pool, _ = make_module("json", {"train": str(file), "test": str(file)}).load_source()
    assert pool.column("text").to_pylist() == ["", "x", "y"]
    assert pool.column("label").to_pylist() == [1, -1, 2]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"text_columns": ["sentence"]},
            r"no column \['sentence'\], only \['row', 'text', 'label'\]. Set text_columns",
        ),
        ({"label_column": "class"}, r"no column \['class'\]"),
        ({"eval_split": "validation"}, r"no split 'validation', only \['test', 'train'\]"),
        ({"label_names": ["a", "b"]}, r"pool should have labels -1 to 1, but also has \[2\]"),
    ],
)
def test_what_the_files_lack_is_an_error_that_lists_what_they_have(make_module, files, kwargs, message):
    with pytest.raises(DataError, match=message):
        make_module("parquet", files("parquet"), **kwargs).setup()


def test_a_label_without_a_name_is_an_error(make_module, files):
    with pytest.raises(DataError, match=r"has labels \['c'\], which label_names \['a', 'b'\] lacks"):
        make_module("json", files("json"), label_names=["a", "b"]).setup()


def test_a_missing_file_is_an_error_that_names_it(make_module, tmp_path):
    files = {"train": str(tmp_path / "gone.csv")}
    with pytest.raises(
        DataError, match=r"could not be loaded: FileNotFoundError.*gone\.csv.*Check data_files"
    ) as caught:
        make_module("csv", files).setup()
    assert isinstance(caught.value.__cause__, FileNotFoundError)
