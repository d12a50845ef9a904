"""Training and `influence predict` give the tokenizer the same texts, from every format and whatever they look like."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datamodules.tokenizers
from datamodules import HubTextDataModule
from lightning_app.deploy.predict import find_texts
from lightning_app.deploy.tables import read_user_table

LOOKS = st.from_regex(r"[-+]?0*[0-9]{1,4}([.][0-9]{1,2})?(e[0-9])?|[12][0-9]{3}-0[1-9]-1[0-9]", fullmatch=True)
WORDS = st.sampled_from(
    ["True", "false", "NA", "null", "None", "nan", "#N/A", "inf", 'a "b"', "x,y", "x\ny", " ä ", "é"]
)
TEXTS = (LOOKS | WORDS | st.text(max_size=10)).filter(str.strip)
COLUMNS = st.one_of(*(st.lists(st.tuples(one, one), min_size=1, max_size=5) for one in (LOOKS, WORDS, TEXTS)))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Write rows in the format that the ending says."""
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], quoting=csv.QUOTE_MINIMAL)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small file to train on, in each format."""
    folder = tmp_path_factory.mktemp("same")
    rows = [{"title": f"title {row}", "text": f"text {row}", "label": "ab"[row % 2]} for row in range(12)]
    for ending in (".csv", ".jsonl", ".parquet"):
        write(folder / f"train{ending}", rows)
    return folder


@settings(max_examples=300, deadline=None, derandomize=True)
@given(COLUMNS, st.sampled_from([".csv", ".jsonl", ".parquet"]), st.sampled_from([["text"], ["title", "text"]]))
def test_training_and_predict_tokenize_the_same_texts(tiny_qwen, folder, cells, ending, columns):
    test = folder / f"test{ending}"
    write(test, [{"title": title, "text": text, "label": "b"} for title, text in cells])
    files = {"train": str(folder / f"train{ending}"), "test": str(test)}
    tokenized = []
    with pytest.MonkeyPatch.context() as patch:
        tokenize = datamodules.tokenizers.tokenize

        def watched(model, texts, size):
            tokenized.append(list(texts))
            return tokenize(model, texts, size)

        for module in ("base", "tokenizers"):  # those of predict, and those of the splits
            patch.setattr(f"datamodules.{module}.tokenize", watched)
        patch.setattr("datamodules.base.cached_table", lambda path, key, build: build())
        sizes = {"head_init_size": 2, "train_size": 2, "dev_size": 2, "text_columns": columns, "cache_dir": folder}
        file_format = {".jsonl": "json"}.get(ending, ending[1:])
        module = HubTextDataModule(tiny_qwen, file_format, "own", ["a", "b"], data_files=files, **sizes)
        module.setup()
        module.texts_dataloader(find_texts(read_user_table(test), columns, test))
    trained, predicted = tokenized
    assert predicted == trained[6:]
    assert predicted == [text if columns == ["text"] else f"{title.strip()}: {text.strip()}" for title, text in cells]
