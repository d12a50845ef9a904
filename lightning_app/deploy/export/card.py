"""The model card: which condition a model is, its metrics, and how it is loaded."""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lightning_app.results import markdown
from lightning_app.results.files import MASK_FILE, METRICS_FILE, read_json, write_text
from lightning_app.results.metrics import METRICS
from lightning_app.run.trained_run import TrainedRun
from modules.backbone import published_name, quantization

MEASURED = "best.ckpt"
"""The checkpoint that an evaluation measures."""

ADAPTER_FOLDER = "adapter"

CHANGES = {"predicted_change": "predicted change", "measured_change": "measured change"}


def write_card(run: TrainedRun, folder: Path, prefix: str) -> None:
    """Write `README.md` into the folder of an export; what comes from data or configurations is escaped.

    Args:
        run: The run.
        folder: The folder, with everything else in it.
        prefix: What the names of the backbone's weights begin with.
    """
    path = run.folder / METRICS_FILE
    metrics = read_json(path) if path.is_file() and run.checkpoint.name == MEASURED else {}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown: the template escapes by `md`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = markdown.escape
    text = environment.get_template("card.md").render(
        head=_head(run),
        dataset=run.identity.dataset,
        arm=run.identity.arm.label,
        condition=markdown.table(_condition(run, metrics)),
        results=markdown.table(_results(metrics)) if metrics else "",
        eval_split=run.datamodule.eval_split_name,
        labels=", ".join(run.datamodule.label_names),
        max_length=run.datamodule.max_length,
        pad_token_id=run.datamodule.pad_token_id,
        num_labels=run.model.num_labels,
        backbone=published_name(run.model.backbone_name),
        precision=run.precision,
        prefix=prefix,
        pooling=run.model.pooling,
        has_adapter=(folder / ADAPTER_FOLDER).is_dir(),
        is_masked=(folder / MASK_FILE).is_file(),
    )
    write_text(folder / "README.md", text)


def _head(run: TrainedRun) -> str:
    """Return what model hubs read, as YAML."""
    backbone = published_name(run.model.backbone_name)
    head = {"library_name": "transformers", "pipeline_tag": "text-classification"}
    return yaml.safe_dump(head if Path(backbone).exists() else head | {"base_model": backbone}, sort_keys=False).strip()


def _condition(run: TrainedRun, metrics: dict[str, Any]) -> pd.DataFrame:
    asked = vars(run.datamodule.sizes)
    sizes = {
        name: "all" if size is None else f"{size:,}" for name, size in (asked | metrics.get("split_sizes", {})).items()
    }
    quantized = quantization(run.model.backbone_name)
    facts = {
        "dataset": run.identity.dataset,
        "arm": run.identity.arm.label,
        "seed": str(run.model.seed),
        "backbone": run.model.backbone_name,
        **({"quantization": f"{quantized}; de-quantized to float32"} if quantized else {}),
        "rows": ", ".join(f"{name} {size}" for name, size in sizes.items()),
        "eval split": run.datamodule.eval_split_name,
        "early stopping looked at": run.datamodule.early_stop_on,
        "precision": run.precision,
    }
    return pd.DataFrame(facts.items(), columns=["", "this model"])


def _results(metrics: dict[str, Any]) -> pd.DataFrame:
    """Return the metrics on eval, and the changes of the training loss by the mask where there is one."""
    rows = {metric.title: f"{metrics[name]:.4f}" for name, metric in METRICS.items() if name in metrics}
    rows |= {title: f"{metrics[name]:+.4f}" for name, title in CHANGES.items() if metrics.get(name) is not None}
    return pd.DataFrame(rows.items(), columns=["measure", "value"])
