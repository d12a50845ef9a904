"""`influence export`: a finished run as a folder that transformers, and for LoRA peft, load."""

import shutil
from pathlib import Path
from typing import cast

import torch
from jsonargparse import ArgumentParser
from torch import nn
from transformers import PreTrainedModel

from lightning_app.deploy.export.card import ADAPTER_FOLDER, write_card
from lightning_app.deploy.export.mean_pooled import MeanPooledForSequenceClassification
from lightning_app.deploy.export.model import save_adapter, to_transformers
from lightning_app.messages import parse
from lightning_app.results.files import MASK_FILE, new_folder
from lightning_app.run.quiet import quiet
from lightning_app.run.trained_run import TrainedRun
from modules import LoRA
from modules.adapters import is_adapter

WEIGHTS_OF = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
"""Type of the weights by the run's precision, where it is not float32."""


def build_parser() -> ArgumentParser:
    """Return the options of `influence export`."""
    parser = ArgumentParser(
        prog="influence export",
        description="Writes a run's model into a folder that transformers loads, with its tokenizer and a model card; "
        "for LoRA also a peft adapter, for masking arms also the mask.",
        exit_on_error=False,
    )
    parser.add_argument("--ckpt", type=str, required=True, help="A run's checkpoints/best.ckpt.")
    parser.add_argument("--out", type=str, required=True, help="The folder to write.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier export in that folder.")
    return parser


def export(checkpoint: Path, out: Path, overwrite: bool = False) -> TrainedRun:
    """Write the folder, whole or not at all.

    Args:
        checkpoint: `<run>/checkpoints/best.ckpt`.
        out: The folder; it may be missing or empty.
        overwrite: Replace an earlier export.

    Returns:
        The run that was exported.

    Raises:
        UsageError: If the folder has something else in it, or the model has no counterpart in transformers.
    """
    with new_folder(out, overwrite, known_by="config.json") as folder:
        run = TrainedRun(checkpoint)
        model = _save_model(run, folder)
        if (run.folder / MASK_FILE).is_file():
            shutil.copyfile(run.folder / MASK_FILE, folder / MASK_FILE)
        write_card(run, folder, model.base_model_prefix)
        for weights in folder.rglob("*.safetensors"):
            weights.chmod(0o644)  # safetensors lets the owner alone read them
    return run


def _save_model(run: TrainedRun, folder: Path) -> PreTrainedModel:
    """Save the adapter, before it is merged; then the model and the tokenizer, which cuts texts as the run did."""
    module, tokenizer = run.model, run.datamodule.tokenizer
    tokenizer.model_max_length = run.datamodule.max_length
    if isinstance(module, LoRA) and not is_adapter(module.backbone_name):  # peft finds no adapter's adapter
        save_adapter(module, folder / ADAPTER_FOLDER)
    model = to_transformers(module, run.datamodule)
    if isinstance(model, MeanPooledForSequenceClassification):  # then save_pretrained copies their file
        type(model.config).register_for_auto_class()
        type(model).register_for_auto_class("AutoModelForSequenceClassification")
    cast(nn.Module, model).to(WEIGHTS_OF.get(run.precision, torch.float32))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def main(argv: list[str]) -> int:
    """Export a run, and say how the folder is loaded."""
    options = parse(build_parser(), argv)
    out = Path(options.out)
    with quiet():
        run = export(Path(options.ckpt), out, options.overwrite)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    if run.model.pooling == "mean":
        print(
            f"No class of transformers pools by the mean: {out / 'mean_pooled.py'} does. Read it, then load the folder "
            "by AutoModelForSequenceClassification.from_pretrained(..., trust_remote_code=True)."
        )
    print(f"How to load it: {out / 'README.md'}")
    return 0
