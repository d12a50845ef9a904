"""The sections of the report, one function each: a new one is one more entry of `SECTIONS`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lightning_app.report import figures, tables
from lightning_app.report.comparisons import Comparisons, compare_arms
from lightning_app.report.expected import BACKBONE, REASONS, show_expected
from lightning_app.report.loading import load_curves, load_results, load_sweeps
from lightning_app.report.masks import find_masks, first_seed, informed, overlaps, shares
from lightning_app.report.names import Look, looks
from lightning_app.report.page import Page, Picture, Section, Table
from lightning_app.report.tables import WORDS, mean_points
from lightning_app.results.design import Design
from lightning_app.results.metrics import HEADLINE, METRICS, Metric
from lightning_app.results.statistics import ALPHA, EQUIVALENCE_MARGIN, POWER, Pair

MUST_AGREE = {
    (): ("backbone", "backbone_fingerprint", "precision", "early_stop_on"),
    ("dataset",): ("eval_split", "split_sizes"),
    ("dataset", "seed"): ("dataset_fingerprint",),
}
"""What the conditions of an experiment, of a dataset, and of a dataset and seed must have in common to be compared."""

LEGEND = (
    "± is half of the 95 % interval of the mean over seeds (Student's t). It needs at least two seeds.",
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
    design: Design
    comparison: Comparisons
    curves: pd.DataFrame
    sweeps: pd.DataFrame

    @classmethod
    def read(cls, folder: Path) -> "Study":
        """Reads an experiment's folder.

        Raises:
            UsageError: If it holds no complete condition, or a file is damaged.
        """
        results = load_results(folder)
        design, curves, sweeps = Design.of(results), load_curves(results), load_sweeps(folder)
        return cls(
            folder, results, tables.summarize(results), design, compare_arms(folder, results, design), curves, sweeps
        )

    @property
    def backbones(self) -> str:
        """What the results ran on."""
        return ", ".join(sorted(map(str, self.results["backbone"].unique())))

    @property
    def looks(self) -> dict[str, Look]:
        """How each arm is drawn."""
        return looks(self.results)


def build_page(study: Study) -> Page:
    """The whole report. Its figures must be drawn and saved under `figures.STYLE`."""
    sections: list[Section] = []
    for make in SECTIONS:
        made = make(study)
        sections += made if isinstance(made, list) else [made] if made else []
    lead = f"Backbone: {study.backbones}."
    return Page(study.folder.resolve().name, lead, mixtures(study.results), answer(study), sections)


def mixtures(results: pd.DataFrame) -> list[str]:
    """A sentence for each way in which results were made under different settings; none if they may be compared."""
    warnings = []
    for keys, columns in MUST_AGREE.items():
        for name, group in results.groupby(list(keys)) if keys else [((), results)]:
            for column in group.columns.intersection(columns):
                values = list(dict.fromkeys(str(value) for value in group[column]))
                if len(values) > 1:
                    which = f" of {' seed '.join(map(str, name))}" if keys else ""
                    warnings.append(f"NOT COMPARABLE: the results{which} mix {column}: {' and '.join(values)}.")
    return warnings


def reading(results: pd.DataFrame) -> list[str]:
    """How to read the table of arms, in plain words."""
    return [*LEGEND, OPTIMISTIC] if (results["early_stop_on"] == "eval").any() else list(LEGEND)


def verdict_lines(comparison: Comparisons) -> list[str]:
    """One sentence per verdict."""
    return [f"{each.dataset}: {WORDS[each.outcome]}; {each.reason}" for each in comparison.verdicts]


def answer(study: Study) -> str:
    """The study in one paragraph: verdicts, prediction against measurement, and what is not shown."""
    comparison, metric, sentences = study.comparison, METRICS[HEADLINE], list[str]()
    for arm, outcome in dict.fromkeys((each.arm, each.outcome) for each in comparison.verdicts):
        alike = [each for each in comparison.verdicts if (each.arm, each.outcome) == (arm, outcome)]
        (_, reference), (_, control) = study.design.claim(arm)
        sentences.append(
            f"On {listed(each.dataset for each in alike)} the verdict is that {WORDS[outcome]}: {arm} scores "
            f"{listed(f'{metric.scale * each.reference.estimate:+.1f}' for each in alike)} {metric.difference_unit} "
            f"beside {reference} and {listed(f'{metric.scale * each.control.estimate:+.1f}' for each in alike)} beside "
            f"{control}."
        )
    if comparison.gaps:
        datasets = dict.fromkeys(dataset for dataset, _ in comparison.gaps)
        sentences.append(f"There is no verdict on {', '.join(datasets)}; the differences below say what is missing.")
    return " ".join([*sentences, *_predictions(study), *_best_fraction(study.sweeps), *_limits(study)])


def _predictions(study: Study) -> list[str]:
    summary = study.summary[study.summary["arm"].isin(informed(study.results)["arm"])]
    rows = summary[summary["measured_change"].notna()]
    sentences = []
    for (arm, predicted, measured), alike in rows.groupby(
        [rows["arm"], rows["predicted_change"] > 0, rows["measured_change"] > 0], sort=False
    ):
        sentences.append(
            f"On {listed(alike['dataset'])} zeroing the weights that {arm} selects was predicted to "
            f"{'raise' if predicted else 'lower'} the training loss "
            f"({listed(map('{:+.2f}'.format, alike['predicted_change']))} nats a sample) and "
            f"{'raised' if measured else 'lowered'} it ({listed(map('{:+.2f}'.format, alike['measured_change']))}): as "
            f"a group they were {'of use, not detrimental' if measured else 'detrimental to these samples'}."
        )
    return sentences


def _best_fraction(points: pd.DataFrame) -> list[str]:
    """Of the masks that a sweep measured, the one of each dataset that lowered the training loss most, if any did."""
    if points.empty:
        return []
    means, metric = mean_points(points), METRICS[HEADLINE]
    best = means.loc[means.groupby("dataset", sort=False)["measured_change"].idxmin()]
    best = best[best["measured_change"] < 0]
    if best.empty:
        return ["No mask of the sweep lowered the training loss."]
    sizes = (f"the {tail} {100 * fraction:g} %" for tail, fraction in zip(best["tail"], best["fraction"], strict=True))
    gains = metric.scale * (best[HEADLINE] - best[f"unmasked_{HEADLINE}"])
    return [
        f"Of the sweep's masks the one that lowered the training loss most was {listed(sizes)} of the candidates on "
        f"{listed(best['dataset'])} ({listed(map('{:+.3f}'.format, best['predicted_change']))} predicted, "
        f"{listed(map('{:+.3f}'.format, best['measured_change']))} measured; dev {metric.title} "
        f"{listed(map('{:+.1f}'.format, gains))} {metric.difference_unit}, picked among "
        f"{len(means) // means['dataset'].nunique()} masks and so flattered)."
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
    sentences = [
        f"This is one study of {study.backbones} on {', '.join(summary['dataset'].unique())}{masks_of} and {seeds} an "
        "arm: it does not show what other models, tasks or masks would do, and of its comparisons only the declared "
        "ones are tests."
    ]
    if study.backbones != BACKBONE:
        sentences.append(f"The source document asks about {BACKBONE}, which these results do not speak of.")
    if study.folder.resolve().name.endswith("-quick"):
        sentences.append("A quick run checks the pipeline. Its numbers are not results.")
    return sentences


def arms_section(study: Study) -> Section:
    """The arms by dataset."""
    numbers = study.summary
    table = Table("arms", "Means over seeds, on the eval split", tables.show_arms(numbers), numbers)
    titles = listed(metric.title for metric in METRICS.values() if metric.in_figures)
    drawn = figures.draw_scores(numbers, study.looks, study.design.baseline)
    picture = Picture("scores", f"{_capitalized(titles)} by dataset and arm", drawn)
    intervals, extra = study.comparison.intervals, []
    if len(intervals):
        units = _units(METRICS.values(), "%")
        caption = f"Means and 95 % intervals over seeds, from the stored predictions: {units}"
        extra = [Table("intervals", caption, tables.show_intervals(intervals), intervals)]
    return Section("Arms by dataset", reading(study.results), [table, *extra], [picture])


def differences_section(study: Study) -> Section:
    """Differences from the baseline, the tests and the verdicts."""
    comparison, title = study.comparison, METRICS[HEADLINE].title
    compared, notes, shown = comparison.differences, [*comparison.left_out], list[Table]()
    if comparison.verdicts or comparison.gaps:
        verdicts = tables.show_verdicts(comparison.verdicts, comparison.gaps)
        shown.append(Table("verdicts", "Does masking help?", verdicts))
    if not compared:
        return Section("Differences from the baseline", notes, shown)
    notes += _how_compared(study.design.declared)
    unit = METRICS[HEADLINE].difference_unit
    shown.append(
        Table(
            "differences",
            f"Differences of {title}, in {unit}",
            tables.show_differences(compared),
            tables.difference_numbers(compared),
        )
    )
    others = [metric for name, metric in METRICS.items() if name != HEADLINE]
    caption = f"Differences by other metrics with 95 % intervals, exploratory: {_units(others, 'points')}"
    if lower := [metric.title for metric in others if not metric.higher_is_better]:
        caption += f"; less is better in {listed(lower)}"
    shown.append(Table("differences_other", caption, tables.show_other_differences(compared)))
    drawn = figures.draw_differences(compared, study.looks, study.design.baseline)
    picture = Picture("differences", f"Differences of {title} with 95 % intervals", drawn)
    return Section("Differences from the baseline", notes, shown, [picture])


def _how_compared(declared: list[Pair]) -> list[str]:
    metric = METRICS[HEADLINE]
    family = "No arm of these results names a control, so no comparison was declared: all are exploratory."
    if declared:
        family = (
            f"Declared before any result was seen: {' and '.join(f'{arm} minus {other}' for arm, other in declared)}, "
            f"by {metric.title}, in every dataset; Holm's correction is taken over all of them in datasets that have a "
            "verdict. Every other comparison is exploratory and uncorrected."
        )
    margin = f"{metric.scale * EQUIVALENCE_MARGIN:g} {metric.difference_unit.removesuffix('s')}"
    return [
        family,
        f"Intervals (95 %) and p hold for other seeds and other rows of the eval split; with one seed for other rows "
        f"only. p (TOST) below {ALPHA:g} shows that a difference is within ± {margin}, the margin of equivalence that "
        "the source document's expectation sets.",
        f"detectable: the smallest true difference, in {metric.difference_unit}, that is found with a probability of "
        f"{POWER:.0%}.",
        "McNemar: exact, two-sided, whether the two err equally often; one p per seed, in the order of the seeds, for "
        "these trained models. Uncorrected; the CSV has Holm's as well.",
    ]


def _units(metrics: Iterable[Metric], percent: str) -> str:
    """The units of metrics in words: `percent` for those in %, the others each by its title."""
    others = [f"{metric.unit or 'units'} of {metric.title}" for metric in metrics if metric.unit != "%"]
    return f"{percent}, and {listed(others)}" if others else percent


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def sweep_section(study: Study) -> Section | None:
    """Masks of many sizes."""
    points = study.sweeps
    if points.empty:
        return None
    titles = listed(metric.title for metric in METRICS.values() if metric.in_sweeps)
    notes = [
        "Every mask comes from the same gradient and trains nothing. The changes are of the training loss on the "
        f"gradient's own samples; {titles} are those of the dev split. A point on the dotted diagonal changed the loss "
        "as predicted: larger masks lie farther from the diagonal.",
    ]
    return Section(
        "Masks of many sizes",
        notes,
        [Table("sweep", "Masks of a sweep, means over seeds", tables.show_sweep(points), points)],
        [
            Picture("predicted", "Predicted against measured change of the loss", figures.draw_predictions(points)),
            Picture("fractions", f"Dev {titles} by masked fraction", figures.draw_fractions(points)),
        ],
    )


def mask_sections(study: Study) -> list[Section]:
    """Where the masks lie, and what they share."""
    made = find_masks(study.results)
    if made.empty:
        return []
    counted = shares(first_seed(made))
    notes = ["The first seed of each dataset; arms with equal masks (the same digest) are shown once, by the first."]
    where = Section(
        "Where the masks lie",
        notes,
        [Table("mask_shares", "Masked, % of the candidates", tables.show_shares(counted), counted)],
        [
            Picture(f"mask_{index}", f"Masked fraction by layer and projection, {name}", figures.draw_mask(group))
            for index, (name, group) in enumerate(counted.groupby("dataset", sort=False))
        ],
    )
    return [where, *_shared(study, overlaps(made))]


def _shared(study: Study, pairs: pd.DataFrame) -> list[Section]:
    if pairs.empty:
        return []
    compared = list(dict.fromkeys(informed(study.results)["arm"]))
    notes = [
        "Jaccard: weights in both masks over weights in either. By chance: what two random masks of these sizes have.",
        f"Pairs of arms are of the first seed; pairs of seeds and of datasets are of {listed(compared)}.",
    ]
    by_arm, others = pairs[pairs["between"] == "arms"], pairs[pairs["between"] != "arms"]
    drawn = []
    if len(by_arm):
        drawn.append(Picture("overlap_arms", "Jaccard of the arms' masks", figures.draw_arm_overlaps(by_arm)))
    if len(others):
        caption = f"Jaccard of the masks of {listed(compared)} between seeds and datasets"
        figure = figures.draw_other_overlaps(others, study.looks[compared[0]].color)
        drawn.append(Picture("overlap_seeds", caption, figure))
    table = Table("overlaps", "Overlap of masks", tables.show_overlaps(pairs), pairs)
    return [Section("What the masks have in common", notes, [table], drawn)]


def training_section(study: Study) -> Section | None:
    """Learning curves."""
    curves = study.curves
    if curves.empty:
        return None
    notes = ["Steps are counted from 1. Arms that do not train have no curve. The CSV holds every point logged."]
    caption = f"Dev {METRICS[HEADLINE].title} and training loss by step, one line per seed"
    return Section(
        "Learning curves",
        notes,
        [Table("curves", "How long the arms trained", tables.show_training(curves, study.summary), curves)],
        [Picture("curves", caption, figures.draw_curves(curves, study.looks))],
    )


def costs_section(study: Study) -> Section:
    """Cost against the headline metric."""
    notes = [
        "fit: training and, for masks, the gradient, selection and measurement. A gradient that several arms shared "
        "counts in full for each of them. Memory is that of the GPU, or of the process where there is none. Arms that "
        "read features another arm had computed are faster than alone.",
    ]
    table = Table("costs", "Means over seeds", tables.show_costs(study.summary), study.summary)
    title = METRICS[HEADLINE].title
    picture = Picture("costs", f"{_capitalized(title)} against cost", figures.draw_costs(study.summary, study.looks))
    return Section(f"Cost and {title}", notes, [table], [picture])


def expected_section(study: Study) -> Section:
    """The source document's expectation and what was measured."""
    same = "the same" if study.backbones == BACKBONE else "another one, so the columns do not answer each other"
    notes = [f"The source document expects this of {BACKBONE}; ours ran on {study.backbones}: {same}.", *REASONS]
    table = Table("expected", figures.title_of(METRICS[HEADLINE]), show_expected(study.summary))
    return Section("What the source document expects", notes, [table])


def protocol_section(study: Study) -> Section:
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


SECTIONS: list[Callable[[Study], Section | list[Section] | None]] = [
    arms_section,
    differences_section,
    sweep_section,
    mask_sections,
    training_section,
    costs_section,
    expected_section,
    protocol_section,
]
"""In the order of the page; what has nothing to show returns None or an empty list."""
