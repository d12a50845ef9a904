"""What the report says, a function a section; a section without anything to show is left out."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lightning_app.report import figures, tables
from lightning_app.report.comparisons import Comparison, compare
from lightning_app.report.expected import BACKBONE, REASONS, show_expected
from lightning_app.report.loading import load_curves, load_results, load_sweeps
from lightning_app.report.masks import find_masks, first_seed, overlaps, shares
from lightning_app.report.page import Page, Picture, Section, Table
from lightning_app.report.tables import WORDS
from lightning_app.results.statistics import ALPHA, FAMILY, MARGIN, POWER

MUST_AGREE = {
    (): ("backbone", "backbone_fingerprint", "precision", "early_stop_on"),
    ("dataset",): ("eval_split", "split_sizes"),
    ("dataset", "seed"): ("dataset_fingerprint",),
}
"""What the conditions of an experiment, of a dataset, and of a dataset and seed must have in common to be compared."""

LEGEND = (
    "± is half of the 95 % interval of the mean over seeds (Student's t); one seed has none.",
    "predicted: the first-order change of the training loss by zeroing the masked weights, minus the sum of "
    "theta * dL/dtheta over them. measured: the real change on the same samples. The lowest sign-gradient scores "
    "are weights whose removal raises the loss to first order.",
)

OPTIMISTIC = "Early stopping looked at the eval split that is reported: these scores are optimistic."
ONCE = "Early stopping and every choice look at dev; eval is read once, at the end."


@dataclass(frozen=True)
class Study:
    """An experiment's results, read and compared."""

    folder: Path
    results: pd.DataFrame
    summary: pd.DataFrame
    comparison: Comparison
    curves: pd.DataFrame
    sweeps: pd.DataFrame

    @classmethod
    def read(cls, folder: Path) -> "Study":
        """Reads an experiment's folder.

        Raises:
            UsageError: If it holds no complete condition, or a file is damaged.
        """
        results = load_results(folder)
        comparison, curves, sweeps = compare(folder, results), load_curves(results), load_sweeps(folder)
        return cls(folder, results, tables.summarise(results), comparison, curves, sweeps)

    @property
    def backbones(self) -> str:
        """What the results ran on."""
        return ", ".join(sorted(map(str, self.results["backbone"].unique())))


def build_page(study: Study) -> Page:
    """The whole report. Its figures are to be drawn and saved under `figures.STYLE`."""
    sections = [
        arms(study),
        differences(study),
        sweep(study),
        *masks(study),
        training(study),
        costs(study),
        expected(study),
        protocol(study),
    ]
    lead = f"Backbone: {study.backbones}."
    kept = [section for section in sections if section is not None]
    return Page(study.folder.resolve().name, lead, mixtures(study.results), answer(study), kept)


def mixtures(results: pd.DataFrame) -> list[str]:
    """A sentence for each way in which results were made under different settings; none if they may be compared."""
    found = []
    for keys, columns in MUST_AGREE.items():
        for name, group in results.groupby(list(keys)) if keys else [((), results)]:
            for column in group.columns.intersection(columns):
                values = list(dict.fromkeys(str(value) for value in group[column]))
                if len(values) > 1:
                    which = f" of {' seed '.join(map(str, name))}" if keys else ""
                    found.append(f"NOT COMPARABLE: the results{which} mix {column}: {' and '.join(values)}.")
    return found


def reading(results: pd.DataFrame) -> list[str]:
    """How to read the table of arms, in plain words."""
    return [*LEGEND, OPTIMISTIC] if (results["early_stop_on"] == "eval").any() else list(LEGEND)


def verdict_lines(comparison: Comparison) -> list[str]:
    """A sentence a dataset that has a verdict."""
    return [f"{one.dataset}: {WORDS[one.outcome]}; {one.reason}" for one in comparison.verdicts]


def answer(study: Study) -> str:
    """The study in one paragraph: verdicts, prediction against measurement, and what is not shown."""
    comparison, said = study.comparison, []
    for outcome in dict.fromkeys(one.outcome for one in comparison.verdicts):
        alike = [one for one in comparison.verdicts if one.outcome == outcome]
        said.append(
            f"On {listed(one.dataset for one in alike)} the verdict is that {WORDS[outcome]}: influence scores "
            f"{listed(f'{100 * one.baseline.estimate:+.1f}' for one in alike)} points beside the baseline and "
            f"{listed(f'{100 * one.control.estimate:+.1f}' for one in alike)} beside as many weights drawn at random."
        )
    if comparison.gaps:
        said.append(f"There is no verdict on {', '.join(comparison.gaps)}; the differences below say what is missing.")
    return " ".join([*said, *_predictions(study.summary), *_best_dose(study.sweeps), *_limits(study)])


def _predictions(summary: pd.DataFrame) -> list[str]:
    rows = summary[(summary["arm"] == "influence") & summary["measured_change"].notna()]
    said = []
    for (predicted, measured), alike in rows.groupby(
        [rows["predicted_change"] > 0, rows["measured_change"] > 0], sort=False
    ):
        said.append(
            f"On {listed(alike['dataset'])} zeroing the weights that influence selects was predicted to "
            f"{'raise' if predicted else 'lower'} the training loss "
            f"({listed(map('{:+.2f}'.format, alike['predicted_change']))} nats a sample) and "
            f"{'raised' if measured else 'lowered'} it ({listed(map('{:+.2f}'.format, alike['measured_change']))}): as "
            f"a group they were {'of use, not detrimental' if measured else 'detrimental to these samples'}."
        )
    return said


def _best_dose(points: pd.DataFrame) -> list[str]:
    """Of the masks that a sweep measured, the one of each dataset that lowered the training loss most, if any did."""
    if points.empty:
        return []
    means = points.groupby(["dataset", "score", "tail", "fraction"], sort=False).mean(numeric_only=True).reset_index()
    best = means.loc[means.groupby("dataset", sort=False)["measured_change"].idxmin()]
    best = best[best["measured_change"] < 0]
    if best.empty:
        return ["No mask of the sweep lowered the training loss."]
    sizes = (f"the {tail} {100 * fraction:g} %" for tail, fraction in zip(best["tail"], best["fraction"], strict=True))
    gains = 100 * (best["accuracy"] - best["unmasked_accuracy"])
    return [
        f"Of the sweep's masks the one that lowered the training loss most was {listed(sizes)} of the candidates on "
        f"{listed(best['dataset'])} ({listed(map('{:+.3f}'.format, best['predicted_change']))} predicted, "
        f"{listed(map('{:+.3f}'.format, best['measured_change']))} measured; dev accuracy "
        f"{listed(map('{:+.1f}'.format, gains))} points, picked among {len(means) // means['dataset'].nunique()} masks "
        "and so flattered)."
    ]


def listed(words: Iterable[str]) -> str:
    """`a, b and c`."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def _limits(study: Study) -> list[str]:
    summary = study.summary
    fewest, most = int(summary["seeds"].min()), int(summary["seeds"].max())
    seeds = f"{most} seed{'s' * (most > 1)}" if fewest == most else f"{fewest} to {most} seeds"
    sizes = study.results.reindex(columns=["masked_parameters", "candidate_parameters"]).dropna()
    percent = sorted({f"{100 * masked / all_of_them:.3g} %" for masked, all_of_them in sizes.itertuples(index=False)})
    masks_of = f", masks of {' and '.join(percent)} of the candidates" if percent else ""
    said = [
        f"This is one study of {study.backbones} on {', '.join(summary['dataset'].unique())}{masks_of} and {seeds} an "
        "arm: it does not show what other models, tasks or masks would do, and of its comparisons only the declared "
        "ones are tests."
    ]
    if study.backbones != BACKBONE:
        said.append(f"The source document asks about {BACKBONE}, which these results do not speak of.")
    if study.folder.resolve().name.endswith("-quick"):
        said.append("A quick run tries the pipeline; its numbers measure nothing.")
    return said


def arms(study: Study) -> Section:
    """The arms by dataset."""
    numbers = study.summary
    table = Table("arms", "Means over seeds, on the eval split", tables.show_arms(numbers), numbers)
    picture = Picture("scores", "Accuracy and macro-F1 by dataset and arm", figures.draw_scores(numbers))
    intervals, extra = study.comparison.intervals, []
    if len(intervals):
        caption = "Means and 95 % intervals over seeds, from the stored predictions: %, and nats of NLL"
        extra = [Table("intervals", caption, tables.show_intervals(intervals), intervals)]
    return Section("Arms by dataset", reading(study.results), [table, *extra], [picture])


def differences(study: Study) -> Section:
    """Differences from the baseline, the tests and the verdicts."""
    comparison = study.comparison
    found, notes = comparison.found, [*comparison.left_out]
    shown = [
        Table("verdicts", "Does masking help?", tables.show_verdicts(comparison.verdicts, comparison.gaps)),
    ]
    if not found:
        return Section("Differences from the baseline", notes, shown)
    declared = " and ".join(f"{arm} minus {other}" for arm, other in FAMILY)
    notes += [
        f"Declared before any result was seen: {declared}, by accuracy, in every dataset; Holm's correction is taken "
        "over all of them in datasets that have a verdict. Every other comparison is exploratory and uncorrected.",
        f"Intervals (95 %) and p hold for other seeds and other rows of the eval split; with one seed for other rows "
        f"only. p (TOST) below {ALPHA:g} shows that a difference is within ± {100 * MARGIN:g} point, the margin of "
        "equivalence that the source document's expectation sets.",
        f"detectable: the smallest true difference, in points, that is found with a probability of {POWER:.0%}.",
        "McNemar: exact, two-sided, whether the two err equally often; one p a seed, in the order of the seeds, for "
        "these trained models. Uncorrected; the CSV has Holm's as well.",
    ]
    shown.append(
        Table(
            "differences",
            "Differences of accuracy, in points",
            tables.show_differences(found),
            tables.difference_numbers(found),
        )
    )
    others = tables.show_other_differences(found)
    caption = (
        "Differences by other metrics with 95 % intervals, exploratory: points, and nats of NLL; less is better in NLL "
        "and ECE"
    )
    shown.append(Table("differences_other", caption, others))
    picture = Picture("differences", "Differences of accuracy with 95 % intervals", figures.draw_differences(found))
    return Section("Differences from the baseline", notes, shown, [picture])


def sweep(study: Study) -> Section | None:
    """Masks of many sizes."""
    points = study.sweeps
    if points.empty:
        return None
    notes = [
        "Every mask comes from the same gradient and trains nothing. The changes are of the training loss on the "
        "gradient's own samples; accuracy and NLL are those of the dev split. A point on the dotted diagonal changed "
        "the loss as predicted: larger masks lie further out.",
    ]
    return Section(
        "Dose and response",
        notes,
        [Table("sweep", "Masks of a sweep, means over seeds", tables.show_sweep(points), points)],
        [
            Picture("predicted", "Predicted against measured change of the loss", figures.draw_predictions(points)),
            Picture("dose", "Dev accuracy and NLL by the share masked", figures.draw_doses(points)),
        ],
    )


def masks(study: Study) -> list[Section]:
    """Where the masks lie, and what they share."""
    found = find_masks(study.results)
    if found.empty:
        return []
    counted = shares(first_seed(found))
    notes = ["The first seed of each dataset; arms with equal masks (the same digest) are shown once, by the first."]
    where = Section(
        "Where the masks lie",
        notes,
        [Table("mask_shares", "Masked, % of the candidates", tables.show_shares(counted), counted)],
        [
            Picture(f"mask_{index}", f"Masked share by layer and projection, {name}", figures.draw_mask(group))
            for index, (name, group) in enumerate(counted.groupby("dataset", sort=False))
        ],
    )
    return [where, *_shared(overlaps(found))]


def _shared(pairs: pd.DataFrame) -> list[Section]:
    if pairs.empty:
        return []
    notes = [
        "Jaccard: weights in both masks over weights in either. By chance: what two random masks of these sizes have.",
        "Pairs of arms are of the first seed; pairs of seeds and of datasets are of arm influence.",
    ]
    by_arm, others = pairs[pairs["between"] == "arms"], pairs[pairs["between"] != "arms"]
    drawn = []
    if len(by_arm):
        drawn.append(Picture("overlap_arms", "Jaccard of the arms' masks", figures.draw_arm_overlaps(by_arm)))
    if len(others):
        caption = "Jaccard of arm influence's masks between seeds and datasets"
        drawn.append(Picture("overlap_influence", caption, figures.draw_other_overlaps(others)))
    table = Table("overlaps", "Overlap of masks", tables.show_overlaps(pairs), pairs)
    return [Section("What the masks have in common", notes, [table], drawn)]


def training(study: Study) -> Section | None:
    """Learning curves."""
    curves = study.curves
    if curves.empty:
        return None
    notes = ["Steps are counted from 1. Arms that do not train have no curve. The CSV holds every point logged."]
    return Section(
        "Learning curves",
        notes,
        [Table("curves", "How long the arms trained", tables.show_training(curves, study.summary), curves)],
        [Picture("curves", "Dev accuracy and training loss by step, a line a seed", figures.draw_curves(curves))],
    )


def costs(study: Study) -> Section:
    """Cost against accuracy."""
    notes = [
        "fit: training and, for masks, the gradient, selection and measurement. A gradient that several arms shared "
        "counts in full for each of them. Memory is that of the GPU, or of the process where there is none. Arms that "
        "read features another arm had computed are faster than alone.",
    ]
    table = Table("costs", "Means over seeds", tables.show_costs(study.summary), study.summary)
    picture = Picture("costs", "Accuracy against cost", figures.draw_costs(study.summary))
    return Section("Cost and accuracy", notes, [table], [picture])


def expected(study: Study) -> Section:
    """The source document's expectation beside ours."""
    same = "the same" if study.backbones == BACKBONE else "another one, so the columns do not answer each other"
    notes = [f"The source document expects this of {BACKBONE}; ours ran on {study.backbones}: {same}.", *REASONS]
    table = Table("expected", "Accuracy, %", show_expected(study.summary))
    return Section("What the source document expects", notes, [table])


def protocol(study: Study) -> Section:
    """Splits, sizes, fingerprints, versions, devices and precision."""
    rows = [
        {
            "dataset": row.dataset,
            "seed": row.seed,
            "eval split": row.eval_split,
            **row.split_sizes,
            "fingerprint": row.dataset_fingerprint[:12],
        }
        for row in study.results.drop_duplicates(["dataset", "seed", "dataset_fingerprint"]).itertuples()
    ]
    data = Table("protocol", "Data", pd.DataFrame(rows).astype(str))
    note = OPTIMISTIC if (study.results["early_stop_on"] == "eval").any() else ONCE
    return Section("Protocol", [note], [data, _made_with(study)])


def _made_with(study: Study) -> Table:
    results = study.results
    known = [
        name for name in ("backbone", "backbone_fingerprint", "device", "precision", "early_stop_on") if name in results
    ]
    values = [(name.replace("_", " "), str(value)[:24]) for name in known for value in results[name]]
    values += [item for versions in results.get("versions", pd.Series()).dropna() for item in versions.items()]
    counted = pd.Series(values).value_counts(sort=False)
    rows = [{"what": what, "value": value, "conditions": number} for (what, value), number in counted.items()]
    return Table("made_with", "Made with", pd.DataFrame(rows))
