"""Where masks lie in the model, and how much they have in common. At most two are in memory at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from influence_masking import Mask
from lightning_app.errors import UsageError
from lightning_app.results.files import MASK_FILE, METRICS_FILE, RERUN


def find_masks(results: pd.DataFrame) -> pd.DataFrame:
    """Return the conditions that left a mask, with its `path`; equal masks of a dataset and seed only once."""
    if "mask_digest" not in results:
        return results.iloc[:0].assign(path=[])
    masks = results[results["mask_digest"].notna()]
    masks = masks.assign(path=[folder / MASK_FILE for folder in masks["folder"]])
    masks = masks[[path.is_file() for path in masks["path"]]]
    return masks.drop_duplicates(["dataset", "seed", "mask_digest"])


def informed_conditions(results: pd.DataFrame) -> pd.DataFrame:
    """Return the conditions of arms with a control, or of all arms that mask if no arm has one."""
    with_control = results[results["control"].notna()]
    return with_control if len(with_control) else results[results["role"] == "mask"]


def of_first_seed(masks: pd.DataFrame) -> pd.DataFrame:
    """Return the masks of the lowest seed of each dataset."""
    return masks[masks["seed"] == masks.groupby("dataset")["seed"].transform("min")]


def masked_shares(masks: pd.DataFrame) -> pd.DataFrame:
    """Count the candidates and the masked weights by layer and projection.

    Returns:
        Columns `dataset`, `arm`, `seed`, `layer`, `projection`, `masked`, `candidates` and `share`, layers in the
        order of the model.
    """
    rows = [
        {"dataset": run.dataset, "arm": run.arm, "seed": run.seed} | share._asdict() | {"share": share.fraction}
        for run in masks.itertuples()
        for share in _load(run.path, run.mask_digest).summary()
    ]
    return pd.DataFrame(rows)


def mask_overlaps(masks: pd.DataFrame) -> pd.DataFrame:
    """Compare masks: of arms within the first seed; of informed arms between seeds and between datasets.

    Returns:
        Columns `between` (arms, seeds, datasets), `dataset` (empty between datasets), `one`, `other`, `intersection`,
        `union`, `jaccard` and `chance`.
    """
    rows = list[dict[str, Any]]()
    for dataset, group in of_first_seed(masks).groupby("dataset", sort=False):
        rows += _pairs("arms", dataset, group["arm"], group)
    compared = informed_conditions(masks)
    by_arm = [
        (f"{arm} " if compared["arm"].nunique() > 1 else "", group)
        for arm, group in compared.groupby("arm", sort=False)
    ]
    for prefix, arm_masks in by_arm:
        for dataset, group in arm_masks.groupby("dataset", sort=False):
            rows += _pairs("seeds", dataset, prefix + "seed " + group["seed"].astype(str), group)
    for prefix, arm_masks in by_arm:
        group = of_first_seed(arm_masks)
        rows += _pairs("datasets", "", prefix + group["dataset"], group)
    columns = ["between", "dataset", "one", "other", "intersection", "union", "jaccard", "chance"]
    return pd.DataFrame(rows, columns=columns)


def _load(path: Path, digest: str) -> Mask:
    """Load a condition's mask and check that it is the one that its metrics name."""
    mask = Mask.load(path)
    if mask.digest != digest:
        raise UsageError(
            f"{path} holds the mask {mask.digest[:12]}, but {METRICS_FILE} in the same folder names {digest[:12]}. "
            f"{RERUN}"
        )
    return mask


def _pairs(between: str, dataset: str, names: pd.Series, masks: pd.DataFrame) -> Iterator[dict[str, Any]]:
    named: list[tuple[str, Path, str]] = list(zip(names, masks["path"], masks["mask_digest"], strict=True))
    for index, (one, path, digest) in enumerate(named[:-1]):
        mask = _load(path, digest)
        for other, other_path, other_digest in named[index + 1 :]:
            other_mask = _load(other_path, other_digest)
            if mask.shapes == other_mask.shapes:  # another backbone has others, which the page warns of
                pair = {"between": between, "dataset": dataset, "one": one, "other": other}
                yield pair | mask.overlap(other_mask)._asdict()


def short_names(names: list[str]) -> list[str]:
    """Return each name by its last part, or by as many parts as distinguish it from all others."""
    return [_short(name, names) for name in names]


def _short(name: str, names: list[str]) -> str:
    starts = [0, *(index + 1 for index, letter in enumerate(name) if letter == ".")]
    for start in reversed(starts):
        if sum(f".{other}".endswith(f".{name[start:]}") for other in set(names)) == 1:
            return name[start:]
    return name
