"""`influence predict`: a run's model labels the rows of a file of one's own."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import pyarrow as pa
import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Trainer
from torch import Tensor

from datamodules import DataError, join_texts
from lightning_app.deploy.tables import check_ending, read_user_table, write_table
from lightning_app.errors import UsageError
from lightning_app.messages import parse
from lightning_app.results.files import check_writable
from lightning_app.run.quiet import quiet
from lightning_app.run.trained_run import TrainedRun

Accelerator = Literal["auto", "cpu", "gpu", "mps", "tpu"]


def build_parser() -> ArgumentParser:
    """Return the options of `influence predict`."""
    parser = ArgumentParser(
        prog="influence predict",
        description="Labels the rows of a CSV (.csv), JSON lines (.jsonl) or Parquet (.parquet) file. All columns are "
        "kept; added are predicted_label and, for each class, probability_<class>.",
        exit_on_error=False,
    )
    add = parser.add_argument
    add("--ckpt", type=str, required=True, help="A run's checkpoints/best.ckpt.")
    add("--input", type=str, required=True, help="The file to read.")
    add("--output", type=str, required=True, help="The file to write.")
    add(
        "--text_columns",
        type=str,
        nargs="+",
        default=[],
        metavar="NAME",
        help="Columns with the text, several are joined; default those of the run's dataset.",
    )
    add(
        "--batch_size",
        type=PositiveInt | None,
        default=None,
        help="Most rows at a time; default as the run's evaluation.",
    )
    add("--accelerator", type=Accelerator, default="auto", help="What computes.")
    add("--overwrite", action="store_true", help="Replace the output if it is there.")
    return parser


def find_texts(table: pa.Table, columns: Sequence[str], path: Path) -> list[str]:
    """Return the text of each row, as the run's own texts were made.

    Raises:
        UsageError: If a column is missing or is not text, there are no rows, or a row has no text.
    """
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise UsageError(f"{path} has no column {missing}, only {table.column_names}. Name the text: --text_columns")
    if not len(table):
        raise UsageError(f"{path} has no rows.")
    try:
        texts = join_texts(table, columns).to_pylist()
    except DataError as error:
        raise UsageError(f"{path}: {error}") from error
    empty = ": ".join("" for _ in columns)
    without = [number for number, text in enumerate(texts, 1) if text.strip() == empty.strip()]
    if without:
        raise UsageError(
            f"{path} has no text in {' and '.join(columns)} of row {without[0]} (counted from 1; {len(without)} such "
            "rows in all). Give it a text, or leave it out."
        )
    return texts


def predict(run: TrainedRun, texts: Sequence[str], accelerator: str = "auto") -> Tensor:
    """Return the logits of texts, in their order, [N, num_labels] in float32, by the same path as those of eval.

    Args:
        run: The run; its datamodule says how texts are cut, and how many are in a batch.
        texts: Any number; they are grouped by length.
        accelerator: The Trainer's.
    """
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        precision=cast(Literal["32-true"], run.precision),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
    )
    outputs = cast(list[dict[str, Tensor]], trainer.predict(run.model, run.datamodule.texts_dataloader(texts)))
    rows, logits = (torch.cat([output[name].cpu() for output in outputs]) for name in ("row", "logits"))
    ordered = torch.empty(len(texts), logits.shape[1])
    ordered[rows[rows >= 0]] = logits[rows >= 0].float()  # -1 is a place that fills a batch
    return ordered


def with_predictions(table: pa.Table, logits: Tensor, label_names: Sequence[str]) -> pa.Table:
    """Return the table with the name of the likeliest class and the probability of each; new columns have new names."""
    added = {"predicted_label": pa.array([label_names[label] for label in logits.argmax(1).tolist()])}
    probabilities = logits.double().softmax(1).T.numpy()
    added |= {f"probability_{name}": pa.array(column) for name, column in zip(label_names, probabilities, strict=True)}
    number = 1
    while any(_numbered(name, number) in table.column_names for name in added):
        number += 1
    for name, column in added.items():
        table = table.append_column(_numbered(name, number), column)
    return table


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}_{number}"


def main(argv: list[str]) -> int:
    """Labels a file, and says what was added."""
    options = parse(build_parser(), argv)
    source, target = Path(options.input), Path(options.output)
    check_ending(target)
    if target.exists() and not options.overwrite:
        raise UsageError(f"--output {target} is there already. Name another file, or --overwrite it.")
    check_writable(target)
    table = read_user_table(source)
    with quiet():
        run = TrainedRun(Path(options.ckpt))
        texts = find_texts(table, options.text_columns or run.datamodule.text_columns, source)
        run.datamodule.eval_batch_size = options.batch_size or run.datamodule.eval_batch_size
        labelled = with_predictions(table, predict(run, texts, options.accelerator), run.datamodule.label_names)
    write_table(target, labelled)
    print(f"{target}: {len(labelled)} rows; added {', '.join(labelled.column_names[len(table.column_names) :])}")
    return 0
