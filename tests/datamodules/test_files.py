"""Datasets of one's own: CSV, JSON lines and Parquet files, and folders of them."""

import csv
import gzip
import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from datamodules import DataError, HubTextDataModule
from datamodules.files import read_table

NAMES = ["a", "b", "c"]
AWKWARD = [
    "0007",
    "1e5",
    "3.10",
    "True",
    "NA",
    "null",
    "None",
    "nan",
    "2024-01-01",
    "-0",
    "1_000",
    'a "b", c\nd',
    " ä ",
]


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


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def files(tmp_path, toy_table):
    """Return the toy rows in three formats, one of them with the names of the labels."""
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


@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.parametrize("text", AWKWARD)
def test_text_is_text_whatever_the_column_looks_like(make_module, tmp_path, text, place):
    """In a folder as well, where `datasets` alone would guess the types of a CSV file."""
    for split in ("train", "test"):
        write_csv(tmp_path / f"{split}.csv", [["text", "label"], [text, "a"], [text, "b"]])
    files = {split: str(tmp_path / f"{split}.csv") for split in ("train", "test")}
    module = make_module("csv", files) if place == "file" else make_module(str(tmp_path))
    for table in module.load_source():
        assert table.to_pydict() == {"row": [0, 1], "text": [text, text], "label": [0, 1]}


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


def test_missing_texts_and_labels_are_empty_and_unlabeled(make_module, tmp_path):
    file = tmp_path / "rows.json"
    rows = [{"text": None, "label": 1}, {"text": "x", "label": None}, {"text": "y", "label": 2}]
    file.write_text("\n".join(map(json.dumps, rows)))
    pool, _ = make_module("json", {"train": str(file), "test": str(file)}).load_source()
    assert pool.column("text").to_pylist() == ["", "x", "y"]
    assert pool.column("label").to_pylist() == [1, -1, 2]


def test_a_json_file_may_be_one_array(make_module, tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"text": "x", "label": "a"}, {"text": "y", "label": "c"}], indent=2))
    pool, _ = make_module("json", {"train": str(file), "test": str(file)}).load_source()
    assert pool.to_pydict() == {"row": [0, 1], "text": ["x", "y"], "label": [0, 2]}


@pytest.mark.parametrize(
    ("folder", "written"),
    [
        *itertools.product(
            ["plain", "a[1]", "a*", "[ab]/year=2024"],
            ["{0}/part-1.csv", "{0}/part-?.csv", "{0}/**/part-*.csv", ["{0}/part-*.csv"]],
        ),
        ("plain", "{0}/part-[0-9].csv"),
    ],
)
def test_files_are_named_by_paths_and_patterns_in_any_folder(make_module, tmp_path, folder, written):
    (tmp_path / folder).mkdir(parents=True)
    write_csv(tmp_path / folder / "part-1.csv", [["text", "label"], ["x", "a"]])
    named = [name.format(tmp_path / folder) for name in ([written] if isinstance(written, str) else written)]
    pool, _ = make_module("csv", {"train": named, "test": named[0]}).load_source()
    assert pool.to_pydict() == {"row": [0], "text": ["x"], "label": [0]}


def test_several_files_of_a_split_may_have_columns_of_different_types(make_module, tmp_path):
    for number, label in enumerate(["a", 1, None]):
        (tmp_path / f"{number}.json").write_text(json.dumps({"text": f"text {number}", "label": label}))
    pattern = str(tmp_path / "*.json")
    pool, _ = make_module("json", {"train": pattern, "test": pattern}).load_source()
    assert pool.to_pydict() == {"row": [0, 1, 2], "text": ["text 0", "text 1", "text 2"], "label": [0, 1, -1]}


def test_a_compressed_file_is_read(make_module, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.EXTRACTED_DATASETS_PATH", str(tmp_path / "extracted"))
    with gzip.open(tmp_path / "rows.csv.gz", "wt") as file:
        file.write("text,label\n0007,a\n")
    files = {"train": str(tmp_path / "*.csv.gz"), "test": str(tmp_path / "rows.csv.gz")}
    assert make_module("csv", files).load_source()[0]["text"].to_pylist() == ["0007"]


@pytest.mark.parametrize("as_folder", [False, True])
def test_what_the_data_call_their_numbers_counts(make_module, tmp_path, as_folder):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["c", "a"])})
    for split in ("train", "test"):
        Dataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features).to_parquet(tmp_path / f"{split}.parquet")
    files = {split: str(tmp_path / f"{split}.parquet") for split in ("train", "test")}
    module = make_module(str(tmp_path)) if as_folder else make_module("parquet", files)
    assert [table["label"].to_pylist() for table in module.load_source()] == [[2, 0], [2, 0]]
    other = make_module("parquet", files, label_names=["positive", "negative"])
    with pytest.raises(DataError, match=r"labels \['a', 'c'\], which label_names \['positive', 'negative'\] lacks"):
        other.load_source()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"text_columns": ["sentence"]},
            r"no column \['sentence'\], only \['row', 'text', 'label'\]. Set text_columns",
        ),
        ({"label_column": "class"}, r"no column \['class'\]"),
        ({"eval_split": "validation"}, r"no split 'validation', only \['test', 'train'\]"),
        ({"label_names": ["a", "b"]}, r"test.parquet: .*has labels \[2\], which label_names \['a', 'b'\] lacks"),
    ],
)
def test_what_the_files_lack_is_an_error_that_lists_what_they_have(make_module, files, kwargs, message):
    with pytest.raises(DataError, match=message):
        make_module("parquet", {**files("parquet"), "train": files("parquet")["test"]}, **kwargs).setup()


def test_a_missing_file_is_an_error_that_names_it(make_module, tmp_path):
    with pytest.raises(DataError, match=r"There is no file .*gone\.csv\. Check data_files"):
        make_module("csv", {"train": str(tmp_path / "gone.csv")}).setup()


TEXT_ROWS = "text,label\n" + "fine,a\n" * 10_050
CAUSES = {
    "an unquoted comma": ("csv", "text,label\nfine,a\n\nbad, row,b\n", "line 4 has 3 fields, but the first has 2"),
    "a field too few": ("csv", "text,label\nfine,a\nbad\n", "line 3 has 1 fields, but the first has 2"),
    "a field over two lines before it": ("csv", 'text,label\n"x\ny",a\n1,2,3\n', "line 4 has 3 fields"),
    "an open quote": ("csv", 'text,label\nfine,a\n"x,b\n' * 3, "line 3: .*Write a double quote"),
    "text after a quote": ("csv", 'text,label\n"x"y,b\n', "line 2: .*Write a double quote"),
    "two columns of a name": ("csv", "text,label,text\nx,a,y\n", r"several columns called \['text'\]"),
    "nothing": ("csv", "", "it is empty"),
    "a broken line": ("json", '{"text": "x", "label": "a"}\n{"text": \n', "line 2: "),
    "a line that is a list": ("json", '{"text": "x", "label": "a"}\n["x", "a"]\n', "line 2 is not a JSON object"),
    "a list of texts": ("json", '["x", "a"]\n', "object 1 is not a JSON object"),
    "a key twice": ("json", '{"text": "x", "text": "y", "label": "a"}\n', "line 1: the key 'text' is there twice"),
    "half a letter": ("json", '{"text": "\\ud800", "label": "a"}\n', "column 'text' cannot be held in a table"),
    "a depth": ("json", '{"text":' * 100_000, "line 1: maximum recursion depth"),
    "a type that changes": (
        "json",
        '{"text": "x", "label": 1}\n' * 10_050 + '{"text": "x", "label": "a"}',
        "column 'label' has a number first, but a text in line 10051",
    ),
    "a text among numbers": (
        "json",
        '{"text": 1, "label": 1}\n{"text": "x", "label": 1}\n',
        "column 'text' has a number first, but a text in line 2",
    ),
    "a long number": ("json", '{"text": "x", "label": 99999999999999999999}\n', "column 'label' cannot be held"),
    "latin-1": ("csv", f"{TEXT_ROWS}café,b\n".encode("latin-1"), "line 10052 .*0xE9.*Latin-1.*iconv"),
    "latin-1 in JSON": ("json", '{"text": "café", "label": "a"}\n'.encode("latin-1"), "line 1 .*0xE9.*Latin-1"),
    "UTF-16": ("csv", TEXT_ROWS.encode("utf-16"), "it is UTF-16. Save it as UTF-8: iconv -f UTF-16"),
    "UTF-16 without a mark": ("csv", TEXT_ROWS.encode("utf-16-be"), "it is UTF-16"),
    "UTF-16 in JSON": ("json", '{"text": "x", "label": "a"}\n'.encode("utf-16-le"), "it is UTF-16"),
    "UTF-32": ("csv", TEXT_ROWS.encode("utf-32"), "it is UTF-32"),
    "a text file": ("parquet", "text", "Cannot read .*rows as Parquet"),
    "half a label": ("json", '{"text": "x", "label": 0.5}\n', r"has labels \[0\.5\]"),
    "half a label in CSV": ("csv", "text,label\nx,0.5\n", r"has labels \['0\.5'\]"),
    "a text that is a list": ("json", '{"text": ["x"], "label": "a"}\n', "column 'text' is not text but list"),
    "a text that is an object": ("json", '{"text": {"x": 1}, "label": "a"}\n', "column 'text' is not text but struct"),
    "a label that is a list": ("json", '{"text": "x", "label": ["a"]}\n', "'label' has labels of type list"),
    "a label that is an object": ("json", '{"text": "x", "label": {"a": 1}}\n', "'label' has labels of type struct"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_cause_is_shown(make_module, tmp_path, cause):
    file_format, content, message = CAUSES[cause]
    (tmp_path / "rows").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        make_module(file_format, {"train": str(tmp_path / "rows"), "test": str(tmp_path / "rows")}).load_source()
    assert str(tmp_path / "rows") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_that_is_not_needed_may_be_anything(make_module, tmp_path):
    (tmp_path / "rows").write_text('{"text": "x", "label": "a", "id": 1}\n{"text": "y", "label": "b", "id": "two"}\n')
    pool, _ = make_module("json", {"train": str(tmp_path / "rows"), "test": str(tmp_path / "rows")}).load_source()
    assert pool["text"].to_pylist() == ["x", "y"]
    with pytest.raises(DataError, match="column 'id' has a number first, but a text in line 2"):
        read_table(tmp_path / "rows", "json")


def test_a_folder_with_a_bracket_says_so(make_module, tmp_path):
    (tmp_path / "a[1]").mkdir()
    write_csv(tmp_path / "a[1]" / "train.csv", [["text", "label"], ["x", "a"]])
    with pytest.raises(DataError, match=r"could not be loaded: EmptyDatasetError.*Rename the folder"):
        make_module(str(tmp_path / "a[1]")).load_source()


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("x", r"could not be loaded: ArrowInvalid: Failed to parse string: 'x'"),
        ("7", r"`datasets` has read the column 'text' of .* as int64, so that its text is not what the files say"),
    ],
)
def test_types_that_datasets_gives_to_a_csv_file_are_refused_with_the_cause(make_module, tmp_path, last, message):
    """A folder whose README.md declares its columns is read by `datasets`."""
    features = "\n".join(f"  - name: {name}\n    dtype: int64" for name in ("text", "label"))
    (tmp_path / "README.md").write_text(f"---\ndataset_info:\n  features:\n{features}\n---\n")
    for split in ("train", "test"):
        write_csv(tmp_path / f"{split}.csv", [["text", "label"], *[["1", "0"]] * 10_050, [last, "0"]])
    with pytest.raises(DataError, match=message):
        make_module(str(tmp_path)).load_source()


def test_a_date_that_datasets_makes_of_a_text_is_refused(make_module, tmp_path):
    features = "  - name: text\n    dtype: timestamp[s]\n  - name: label\n    dtype: string\n"
    (tmp_path / "README.md").write_text(f"---\ndataset_info:\n  features:\n{features}---\n")
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text('{"text": "2024-01-01", "label": "a"}\n')
    with pytest.raises(DataError, match=r"has read the column 'text' of .* as timestamp\[s\]"):
        make_module(str(tmp_path)).load_source()


@pytest.mark.parametrize(
    "kind", [pa.string_view(), pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())]
)
def test_every_way_that_parquet_keeps_text_is_text(make_module, tmp_path, kind):
    column = pa.array(["0007", "NA", None])
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    labels = pa.array(["c", "a", "b"])
    labels = labels.dictionary_encode() if pa.types.is_dictionary(kind) else labels.cast(kind)
    pq.write_table(pa.table({"text": column, "label": labels}), tmp_path / "rows")
    pool, _ = make_module("parquet", {"train": str(tmp_path / "rows"), "test": str(tmp_path / "rows")}).load_source()
    assert pool.to_pydict() == {"row": [0, 1, 2], "text": ["0007", "NA", ""], "label": [2, 0, 1]}
