"""Datasets from the Hugging Face Hub, and from files and folders of one's own."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datamodules.base import TextDataModule, join_texts
from datamodules.errors import DataError
from datamodules.files import FORMATS, class_names, find_files, read_table
from datamodules.hub_access import endpoint, is_reachable, loading_advice, offline_datasets, root_cause
from datamodules.labels import label_numbers

OTHER_FORMATS = ("arrow", "text")
"""File formats that only `datasets` reads."""

GUESSED = {"csv": ("int", "float", "bool", "null", "timestamp"), "json": ("timestamp",)}
"""Types that `datasets` gives to what is text in a file of a format."""


class HubDataModule(TextDataModule):
    """A dataset that is defined by class attributes alone.

    Attributes:
        path: Hub id, a folder, or `"csv"`, `"json"` or `"parquet"` for `data_files`.
        config: Configuration of the dataset, if it has several.
        data_files: Files of each split: paths, or patterns with `*`.
        label_column: The column with the class: one of `label_names`, or its number from 0.
        train_split: The split that head_init, train and dev are drawn from.
        eval_split_name: The labeled split for evaluation.
    """

    path: str
    config: str | None = None
    data_files: Mapping[str, str | list[str]] | None = None
    label_column = "label"
    train_split = "train"

    def load_source(self) -> tuple[pa.Table, pa.Table]:
        """Load both splits; see `TextDataModule.load_source`."""
        file_format, splits = self._find_splits()
        return self._load(file_format, splits, self.train_split), self._load(file_format, splits, self.eval_split_name)

    def _find_splits(self) -> tuple[str | None, Mapping[str, Any]]:
        """Return a file format and the files of each split; for what `datasets` loads, None and the loaded splits."""
        if self.path in FORMATS:
            return self.path, self.data_files or {}
        try:
            return self._files_of_folder() or (None, self._load_dataset())
        except Exception as err:
            wanted = f"{self.path!r} (configuration {self.config or 'default'}, files {self.data_files or 'all'})"
            raise DataError(f"The dataset {wanted} could not be loaded{self._why_not_loaded(err)}") from err

    def _files_of_folder(self) -> tuple[str, Mapping[str, Any]] | None:
        """Return the format and the files of a folder, as `datasets` finds them; None if only `datasets` reads it.

        `datasets` would read CSV files by pandas: 0007 becomes 7, NA is missing, and of a row with one field more than
        there are columns the first is dropped.
        """
        if not Path(self.path).is_dir():
            return None
        from datasets import load_dataset_builder

        builder = load_dataset_builder(self.path, self.config, data_files=self.data_files)
        file_format = type(builder).__module__.rpartition(".")[2]
        declared = builder.info.features is not None or getattr(builder.config, "sep", ",") != ","  # in its README.md
        return None if declared or file_format not in FORMATS else (file_format, builder.config.data_files)

    def _load_dataset(self) -> Mapping[str, Any]:
        """Load all splits; from the local copy at once if the hub does not answer."""
        from datasets import load_dataset  # takes a second, which the embedded dataset does not need to spend

        online = self.path in OTHER_FORMATS or is_reachable(self.path, "dataset")
        with nullcontext() if online else offline_datasets():
            return load_dataset(self.path, self.config, data_files=self.data_files)

    def _why_not_loaded(self, err: Exception) -> str:
        """Return where the dataset was looked for, the cause and what to do."""
        from datasets.config import HF_DATASETS_CACHE

        cause = root_cause(err)
        if "[" in self.path:
            return f": {cause}. In a folder's name `datasets` takes [ for a pattern. Rename the folder."
        if self.path in OTHER_FORMATS or Path(self.path).is_dir():
            return f": {cause}. Check the files, or name them in data_files with path csv, json or parquet."
        return f", neither from {endpoint()} nor from a local copy: {cause}. {loading_advice(HF_DATASETS_CACHE)}"

    def _load(self, file_format: str | None, splits: Mapping[str, Any], split: str) -> pa.Table:
        """Return `row`, `text` and `label` of one split."""
        if split not in splits:
            raise DataError(
                f"The dataset {self.path!r} has no split {split!r}, only {sorted(splits)}. Set data_files, train_split "
                "and eval_split."
            )
        parts = self._read(file_format, splits[split]) if file_format else [self._take(splits[split], split)]
        table = pa.concat_tables(parts)
        return table.add_column(0, "row", [np.arange(len(table))])

    def _read(self, file_format: str, files: str | list[str]) -> list[pa.Table]:
        """Return `text` and `label` of each file; the files' columns may be of different types."""
        tables = {path: read_table(path, file_format, self._columns) for path in find_files(files)}
        return [self._convert(table, class_names(table, self.label_column), path) for path, table in tables.items()]

    def _take(self, dataset: Any, split: str) -> pa.Table:
        """Return `text` and `label` of what `datasets` loaded."""
        missing = [name for name in self._columns if name not in dataset.column_names]
        if missing:
            raise DataError(
                f"The split {split!r} of {self.path!r} has no column {missing}, only {dataset.column_names}. "
                "Set text_columns and label_column."
            )
        for name in self.text_columns:
            dtype = str(getattr(dataset.features[name], "dtype", ""))
            if dtype.startswith(GUESSED.get(dataset.info.builder_name, ())):
                raise DataError(
                    f"`datasets` has read the column {name!r} of {self.path!r} as {dtype}, so that its text is not "
                    "what the files say (007 is 7). Download the files, and name them in data_files with path csv "
                    "or json."
                )
        names = getattr(dataset.features[self.label_column], "names", None)
        table = dataset.select_columns(self._columns).with_format("arrow")[:]
        return self._convert(table, names, f"The split {split!r} of {self.path!r}")

    def _convert(self, table: pa.Table, own_names: list[str] | None, source: object) -> pa.Table:
        try:
            labels = label_numbers(table, self.label_column, self.label_names, own_names)
            return pa.table({"text": join_texts(table, self.text_columns), "label": labels})
        except DataError as err:
            raise DataError(f"{source}: {err}") from err

    @property
    def _columns(self) -> list[str]:
        return list(dict.fromkeys([*self.text_columns, self.label_column]))


class HubTextDataModule(HubDataModule):
    """A dataset that is defined by arguments: your own is a YAML file without code.

    Args:
        tokenizer: Hub id or folder of the tokenizer.
        path: Hub id, a folder, or `csv`, `json` or `parquet` for `data_files`.
        name: Name of the dataset in results.
        label_names: The classes in the order of their numbers.
        eval_split: The labeled split for evaluation.
        text_columns: The column with the text, or several that are joined by `": "`.
        label_column: The column with the class: one of `label_names`, or its number from 0.
        train_split: The split that head_init, train and dev are drawn from.
        config: Configuration of the dataset, if it has several.
        data_files: Files of each split: paths, or patterns with `*`.
        **kwargs: See `TextDataModule`.
    """

    def __init__(
        self,
        tokenizer: str,
        path: str,
        name: str,
        label_names: list[str],
        eval_split: str = "test",
        text_columns: list[str] | tuple[str, ...] = ("text",),
        label_column: str = "label",
        train_split: str = "train",
        config: str | None = None,
        data_files: dict[str, str | list[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        self.path, self.name, self.label_names, self.eval_split_name = path, name, label_names, eval_split
        self.text_columns, self.label_column, self.train_split = text_columns, label_column, train_split
        self.config, self.data_files = config, data_files
        super().__init__(tokenizer, **kwargs)
