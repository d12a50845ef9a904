"""The statistics of an experiment's arms: which can be compared, what is missing for a verdict, and how it is made."""

import shlex
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lightning_app.errors import UsageError
from lightning_app.report.loading import read_evaluations
from lightning_app.results.records import read_condition
from lightning_app.results.statistics import (
    BASELINE,
    FAMILY,
    VERDICT_METRIC,
    Difference,
    Evaluation,
    Pair,
    Verdict,
    differences,
    holm,
    seed_intervals,
    verdicts,
)

NEEDED = tuple(dict.fromkeys(arm for pair in FAMILY for arm in pair))
"""Arms without which a dataset has no verdict."""


@dataclass(frozen=True)
class Comparison:
    """What the stored predictions say.

    Attributes:
        intervals: As `seed_intervals` gives them.
        found: Differences of every arm from the baseline and of the declared pairs, with Holm's p for the latter.
        verdicts: One for each dataset that has both declared pairs.
        gaps: For each other dataset, what is missing and the command that makes it.
        left_out: A sentence for each condition or dataset that could not be compared.
    """

    intervals: pd.DataFrame
    found: list[Difference]
    verdicts: list[Verdict]
    gaps: dict[str, str]
    left_out: list[str]


def compare(experiment: Path, results: pd.DataFrame) -> Comparison:
    """Compares the arms of an experiment, a dataset at a time.

    Args:
        experiment: Its folder.
        results: As `load_results` gives them.

    Raises:
        UsageError: If stored predictions are damaged.
    """
    intervals, found, gaps, left_out = [], [], {}, []
    for dataset, group in results.groupby("dataset", sort=False):
        evaluations, unread = read_evaluations(group["folder"])
        intervals.append(seed_intervals(evaluations))
        pairs = comparable_pairs(evaluations)
        left_out += unread
        try:
            found += differences(evaluations, pairs)
        except UsageError as error:  # rows that differ: the experiment mixes what cannot be compared
            left_out.append(f"The arms of {dataset} cannot be compared: {error}")
            pairs = []
        if not set(FAMILY) <= set(pairs):
            gaps[dataset] = _gap(experiment, group, evaluations)
    found = _correct(found, gaps)
    judged = verdicts([one for one in found if one.dataset not in gaps])
    return Comparison(pd.concat(intervals, ignore_index=True), found, judged, gaps, left_out)


def comparable_pairs(evaluations: list[Evaluation]) -> list[Pair]:
    """Every arm with the baseline, and the declared pairs, where both have a seed in common."""
    seeds = _seeds(evaluations)
    pairs = dict.fromkeys([*FAMILY, *((arm, BASELINE) for arm in seeds if arm != BASELINE)])
    return [(arm, other) for arm, other in pairs if seeds.get(arm, set()) & seeds.get(other, set())]


def is_declared(one: Difference) -> bool:
    """Whether a difference is one of those that a verdict stands on; every other is exploratory."""
    return (one.arm, one.reference) in FAMILY and one.metric == VERDICT_METRIC


def _seeds(evaluations: list[Evaluation]) -> dict[str, set[int]]:
    seeds: dict[str, set[int]] = {}
    for one in evaluations:
        seeds.setdefault(one.arm, set()).add(one.seed)
    return seeds


def _correct(found: list[Difference], gaps: dict[str, str]) -> list[Difference]:
    """Holm's correction over the datasets that have a verdict: the same as the verdicts' own."""
    corrected = iter(holm([one for one in found if one.dataset not in gaps]))
    return [one if one.dataset in gaps else next(corrected) for one in found]


def _gap(experiment: Path, group: pd.DataFrame, evaluations: list[Evaluation]) -> str:
    """What a dataset lacks for a verdict, and the command that makes it."""
    seeds, complete = _seeds(evaluations), set(group["arm"])
    missing = [arm for arm in NEEDED if arm not in seeds]
    what = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    if not missing:
        what = "; ".join(f"{arm} has the seeds {sorted(seeds[arm])}" for arm in NEEDED)
    command = make_command(experiment, group, missing or list(NEEDED), overwrite=bool(complete & set(missing)))
    return f"A verdict needs {', '.join(NEEDED)} with the same seeds and rows; {what}. Make it: `{command}`"


def make_command(experiment: Path, group: pd.DataFrame, arms: list[str], overwrite: bool = False) -> str:
    """The command that adds arms to a dataset of an experiment, under the settings of what is there."""
    name, backbone = experiment.resolve().name, str(group["backbone"].iloc[0])
    quick = name.endswith("-quick")
    name = name.removesuffix("-quick")
    words = ["influence", "experiment", "--backbone", backbone]
    words += [] if name == f"experiment-{Path(backbone).name}" else ["--name", name]
    words += ["--datasets", str(group["dataset"].iloc[0]), "--arms", *arms]
    words += ["--seeds", *map(str, sorted(group["seed"].unique()))]
    settings = _settings(group, quick)
    words += (["--set", *settings] if settings else []) + ["--quick"] * quick + ["--overwrite"] * overwrite
    return shlex.join(words)


def _settings(group: pd.DataFrame, quick: bool) -> list[str]:
    """What `--set` had changed: for all arms, or for the first alone, the baseline where there is one."""
    first, *others = [_overrides(folder) for folder in group["folder"]]
    arm = group["arm"].iloc[0]
    words = [word if all(word in other for other in others) else f"{arm}:{word}" for word in first]
    return [word for word in words if not (quick and word.partition("=")[0].endswith("_size"))]


def _overrides(folder: Path) -> list[str]:
    file = folder / "condition.json"
    words = read_condition(file)["settings"]["overrides"] if file.exists() else []
    return [word.removeprefix("--") for word in words if not word.startswith("--model.backbone=")]
