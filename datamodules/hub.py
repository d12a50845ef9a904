"""Datasets that `datasets.load_dataset` can load: from the hub, or from CSV, JSON lines and Parquet files."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.base import TextDataModule, join_texts
from datamodules.errors import DataError
from datamodules.hub_access import OFFLINE_ADVICE, endpoint, is_reachable, offline_datasets

if TYPE_CHECKING:
    from datasets import DatasetDict

FILE_FORMATS = ("arrow", "csv", "json", "parquet", "text")


class HubDataModule(TextDataModule):
    """A dataset that is named by class attributes alone.

    Attributes:
        path: hub id, a folder, or a file format such as `"csv"` for `data_files`.
        config: configuration of the dataset, where it has several.
        data_files: files of each split.
        label_column: the class, as a number from 0 or as one of `label_names`.
        train_split: the split that head_init, train and dev are drawn from.
        eval_split_name: the labelled split that is kept whole for evaluation.
    """

    path: str
    config: str | None = None
    data_files: Mapping[str, str | list[str]] | None = None
    label_column = "label"
    train_split = "train"

    def load_source(self) -> tuple[pa.Table, pa.Table]:
        """Load both splits; see `TextDataModule.load_source`."""
        found = self._load_dataset()
        return self._table(found, self.train_split), self._table(found, self.eval_split_name)

    def _load_dataset(self) -> "DatasetDict":
        """Load all splits; from the local copy at once where the hub does not answer."""
        from datasets import load_dataset  # takes a second, which the embedded dataset need not spend

        from_files = self.path in FILE_FORMATS
        online = from_files or is_reachable(self.path, "dataset")
        try:
            with nullcontext() if online else offline_datasets():
                return load_dataset(self.path, self.config, data_files=self.data_files)
        except Exception as err:
            asked = f"{self.path!r} (configuration {self.config or 'default'}, files {self.data_files or 'all'})"
            places = "" if from_files else f", neither from {endpoint()} nor from a local copy"
            advice = "Check data_files." if from_files else OFFLINE_ADVICE
            found = f"{type(err).__name__}: {str(err).partition(chr(10))[0].rstrip('.')}"
            raise DataError(f"The dataset {asked} could not be loaded{places}: {found}. {advice}") from err

    def _table(self, found: "DatasetDict", split: str) -> pa.Table:
        """Return `row`, `text` and `label` of one split."""
        if split not in found:
            raise DataError(f"The dataset {self.path!r} has no split {split!r}, only {sorted(found)}.")
        columns = [*self.text_columns, self.label_column]
        missing = [name for name in columns if name not in found[split].column_names]
        if missing:
            raise DataError(
                f"The split {split!r} of {self.path!r} has no column {missing}, only {found[split].column_names}. "
                "Set text_columns and label_column."
            )
        table = found[split].select_columns(columns).with_format("arrow")[:]
        return pa.table(
            {"row": np.arange(len(table)), "text": join_texts(table, self.text_columns), "label": self._labels(table)}
        )

    def _labels(self, table: pa.Table) -> pa.ChunkedArray:
        """Return the classes as numbers; -1 where there is none."""
        column = table.column(self.label_column)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            unknown = sorted(set(column.to_pylist()) - {*self.label_names, None})
            if unknown:
                raise DataError(f"{self.path!r} has labels {unknown[:5]}, which label_names {self.label_names} lacks.")
            column = pc.index_in(column, pa.array(self.label_names, column.type))
        return pc.fill_null(column.cast(pa.int64()), -1)


class HubTextDataModule(HubDataModule):
    """A dataset that is named by arguments: one of your own is a YAML file, and no code.

    Args:
        tokenizer: hub id or folder of a tokenizer.
        path: hub id, a folder, or `csv`, `json` or `parquet` for `data_files`.
        name: what results call the dataset.
        label_names: the classes in the order of their numbers.
        eval_split: the labelled split that is kept whole for evaluation.
        text_columns: the text, or several columns that are joined by `": "`.
        label_column: the class, as a number from 0 or as one of `label_names`.
        train_split: the split that head_init, train and dev are drawn from.
        config: configuration of the dataset, where it has several.
        data_files: files of each split.
        **kwargs: see `TextDataModule`.
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
