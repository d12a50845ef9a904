"""The sections of the report, one function each; `SECTIONS` lists them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lightning_app.report import figures, tables
from lightning_app.report.comparisons import Comparisons, compare_arms
from lightning_app.report.expected import EXPECTATION_NOTES, PROTOCOL_BACKBONE, show_expected
from lightning_app.report.loading import load_curves, load_results, load_sweeps
from lightning_app.report.masks import find_masks, informed_conditions, mask_overlaps, masked_shares, of_first_seed
from lightning_app.report.page import Page, Picture, Section, Table
from lightning_app.report.styles import ArmStyle, arm_styles
from lightning_app.report.tables import OUTCOME_TEXTS, mean_over_seeds
from lightning_app.results.design import Design
from lightning_app.results.metrics import HEADLINE, METRICS, Metric
from lightning_app.results.statistics import ALPHA, EQUIVALENCE_MARGIN, POWER, Pair

MUST_AGREE = {
    (): ("backbone", "backbone_fingerprint", "precision", "early_stop_on"),
    ("dataset",): ("eval_split", "split_sizes"),
    ("dataset", "seed"): ("dataset_fingerprint",),
}
"""Fields that must be equal to compare conditions: of an experiment, of a dataset, and of a dataset and seed."""

LEGEND_NOTES = (
    "± is half of the 95 % interval of the mean over seeds (Student's t). It needs at least two seeds.",
    "predicted: the change of the training loss, in nats per sample, that first-order theory expects when the masked "
    "weights are set to zero. It is minus the sum of theta * dL/dtheta over them.",
    "measured: the change of the loss on the same samples when they are set to zero.",
    "To first order, removing the weights with the lowest sign-gradient scores raises the loss.",
)

OPTIMISTIC_NOTE = "Early stopping looked at the eval split that is reported, so these scores are optimistic."
EVAL_READ_ONCE_NOTE = "Early stopping and every choice look at dev. Eval is read once, at the end."


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
        """Read an experiment's folder.

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
    def styles(self) -> dict[str, ArmStyle]:
        """How each arm is drawn."""
        return arm_styles(self.results)


def build_page(study: Study) -> Page:
    """Return the whole report. Draw and save its figures under `figures.MATPLOTLIB_STYLE`."""
    sections: list[Section] = []
    for make in SECTIONS:
        made = make(study)
        sections += made if isinstance(made, list) else [made] if made else []
    lead = f"Backbone: {study.backbones}."
    return Page(
        study.folder.resolve().name, lead, comparability_warnings(study.results), answer_paragraph(study), sections
    )


def comparability_warnings(results: pd.DataFrame) -> list[str]:
    """Return a sentence for each setting in which results differ that must agree to be compared."""
    warnings = []
    for keys, columns in MUST_AGREE.items():
        for name, group in results.groupby(list(keys)) if keys else [((), results)]:
            for column in group.columns.intersection(columns):
                values = list(dict.fromkeys(str(value) for value in group[column]))
                if len(values) > 1:
                    which = f" of {' seed '.join(map(str, name))}" if keys else ""
                    warnings.append(f"NOT COMPARABLE: the results{which} mix {column}: {' and '.join(values)}.")
    return warnings


def reading_notes(results: pd.DataFrame) -> list[str]:
    """Return sentences on how to read the table of arms."""
    return [*LEGEND_NOTES, OPTIMISTIC_NOTE] if (results["early_stop_on"] == "eval").any() else list(LEGEND_NOTES)


def verdict_lines(comparison: Comparisons) -> list[str]:
    """Return one sentence per verdict."""
    return [f"{each.dataset}: {OUTCOME_TEXTS[each.outcome]}; {each.reason}" for each in comparison.verdicts]


def answer_paragraph(study: Study) -> str:
    """Return the study in one paragraph: verdicts, predicted and measured changes, and what is not shown."""
    comparison, sentences = study.comparison, list[str]()
    for each in comparison.verdicts:
        distances = [f"{_distance(one.estimate)} {one.reference}" for one in (each.reference, each.control)]
        result = f"{_capitalized(OUTCOME_TEXTS[each.outcome])} on {each.dataset}"
        sentences.append(f"{result}: {each.arm} is {join_words(distances)}.")
    if comparison.gaps:
        datasets = join_words(dict.fromkeys(dataset for dataset, _ in comparison.gaps))
        sentences.append(f"There is no verdict on {datasets}; the section on differences says what is missing.")
    return " ".join([*sentences, *_loss_changes(study), *_best_masks(study.sweeps), *_limits(study)])


def _distance(estimate: float) -> str:
    metric = METRICS[HEADLINE]
    where = "below" if estimate < 0 else "above"
    return f"{abs(metric.scale * estimate):.1f} {metric.difference_unit} {where}"


def _loss_changes(study: Study) -> list[str]:
    """Return a sentence on what zeroing each informed mask did to the training loss."""
    summary = study.summary[study.summary["arm"].isin(informed_conditions(study.results)["arm"])]
    return [
        f"On {row.dataset}, zeroing the weights that {row.arm} selects "
        f"{'raised' if row.measured_change > 0 else 'lowered'} the training loss by {abs(row.measured_change):.2f} "
        f"nats per sample (predicted: {row.predicted_change:+.2f}); as a group they were "
        f"{'useful, not detrimental' if row.measured_change > 0 else 'detrimental to these samples'}."
        for row in summary[summary["measured_change"].notna()].itertuples()
    ]


def _best_masks(points: pd.DataFrame) -> list[str]:
    """Return a sentence on the mask of each sweep that lowered the training loss most."""
    if points.empty:
        return []
    means, metric = mean_over_seeds(points), METRICS[HEADLINE]
    best = means.loc[means.groupby("dataset", sort=False)["measured_change"].idxmin()]
    best = best[best["measured_change"] < 0]
    if best.empty:
        return ["No mask of the sweep lowered the training loss."]
    gains = metric.scale * (best[HEADLINE] - best[f"unmasked_{HEADLINE}"])
    sentences = [
        f"On {row.dataset}, the best mask of the sweep is the {row.tail} {100 * row.fraction:g} % of the candidates: "
        f"it changed the training loss by {row.measured_change:+.3f} (predicted: {row.predicted_change:+.3f}) and dev "
        f"{metric.title} by {gain:+.1f} {metric.difference_unit}."
        for row, gain in zip(best.itertuples(), gains, strict=True)
    ]
    tried = len(means) // means["dataset"].nunique()
    return [*sentences, f"The best of {tried} masks looks better than it is, because it was chosen by this result."]


def join_words(words: Iterable[str]) -> str:
    """Return `a, b and c`."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def _limits(study: Study) -> list[str]:
    summary = study.summary
    fewest, most = int(summary["seeds"].min()), int(summary["seeds"].max())
    seeds = f"{most} seed{'s' * (most > 1)}" if fewest == most else f"{fewest} to {most} seeds"
    sizes = study.results.reindex(columns=["masked_parameters", "candidate_parameters"]).dropna()
    percent = sorted({f"{100 * masked / all_of_them:.3g} %" for masked, all_of_them in sizes.itertuples(index=False)})
    masks_of = f"masks of {join_words(percent)} of the candidates and " if percent else ""
    sentences = [
        f"These results are from {study.backbones} on {join_words(summary['dataset'].unique())}, with {masks_of}"
        f"{seeds} per arm. They do not show what other models, tasks or masks would do. Only the declared comparisons "
        "are tests."
    ]
    if study.backbones != PROTOCOL_BACKBONE:
        sentences.append(f"The original study protocol asks about {PROTOCOL_BACKBONE}, which was not run here.")
    if study.folder.resolve().name.endswith("-quick"):
        sentences.append("A quick run checks the pipeline. Its numbers are not results.")
    return sentences


def arms_section(study: Study) -> Section:
    """Show the arms by dataset."""
    numbers = study.summary
    table = Table("arms", "Means over seeds, on the eval split", tables.show_arms(numbers), numbers)
    titles = join_words(metric.title for metric in METRICS.values() if metric.in_figures)
    figure = figures.draw_scores(numbers, study.styles, study.design.baseline)
    picture = Picture("scores", f"{_capitalized(titles)} by dataset and arm", figure)
    intervals, extra = study.comparison.intervals, []
    if len(intervals):
        units = _units(METRICS.values(), "%")
        caption = f"Means and 95 % intervals over seeds, from the stored predictions: {units}"
        extra = [Table("intervals", caption, tables.show_intervals(intervals), intervals)]
    return Section("Arms by dataset", reading_notes(study.results), [table, *extra], [picture])


def differences_section(study: Study) -> Section:
    """Show differences from the baseline, tests and verdicts."""
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
        caption += f"; less is better in {join_words(lower)}"
    shown.append(Table("differences_other", caption, tables.show_other_differences(compared)))
    figure = figures.draw_differences(compared, study.styles, study.design.baseline)
    picture = Picture("differences", f"Differences of {title} with 95 % intervals", figure)
    return Section("Differences from the baseline", notes, shown, [picture])


def _how_compared(declared: list[Pair]) -> list[str]:
    metric = METRICS[HEADLINE]
    family = ["All comparisons are exploratory: no arm of these results names a control, so none was declared."]
    if declared:
        pairs = join_words(f"{arm} minus {other}" for arm, other in declared)
        family = [
            f"Declared before any result was seen: {pairs}, by {metric.title}, in every dataset.",
            "Holm's correction covers the declared comparisons of all datasets that have a verdict. Every other "
            "comparison is exploratory and uncorrected.",
        ]
    margin = f"{metric.scale * EQUIVALENCE_MARGIN:g} {metric.difference_unit.removesuffix('s')}"
    return [
        *family,
        "Intervals (95 %) and p hold for other seeds and other eval rows; with one seed, only for other rows.",
        f"p (TOST) below {ALPHA:g} shows that a difference is within ± {margin}, the margin of equivalence that the "
        "original study protocol sets.",
        f"detectable: the smallest true difference, in {metric.difference_unit}, that the study finds with a "
        f"probability of {POWER:.0%}.",
        "McNemar: exact two-sided p that both err equally often, one per seed. It holds for these trained models only. "
        "It is uncorrected; the CSV file also has Holm's correction.",
    ]


def _units(metrics: Iterable[Metric], percent: str) -> str:
    """Return the units of metrics in words: `percent` for those in %, the others each with its title."""
    others = [f"{metric.unit or 'units'} of {metric.title}" for metric in metrics if metric.unit != "%"]
    return f"{percent}, and {join_words(others)}" if others else percent


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def sweep_section(study: Study) -> Section | None:
    """Show masks of many sizes."""
    points = study.sweeps
    if points.empty:
        return None
    titles = join_words(metric.title for metric in METRICS.values() if metric.in_sweeps)
    notes = [
        "Every mask comes from the same gradient, and nothing is trained.",
        f"Changes are of the training loss on the samples of the gradient; {titles} are measured on dev.",
        "A point on the dotted diagonal changed the loss as predicted. Larger masks lie farther from the diagonal.",
    ]
    return Section(
        "Masks of many sizes",
        notes,
        [Table("sweep", "Masks of a sweep, means over seeds", tables.show_sweep(points), points)],
        [
            Picture("predicted", "Predicted against measured change of the loss", figures.draw_loss_changes(points)),
            Picture("fractions", f"Dev {titles} by masked fraction", figures.draw_fractions(points)),
        ],
    )


def mask_sections(study: Study) -> list[Section]:
    """Show where the masks lie, and what they have in common."""
    masks = find_masks(study.results)
    if masks.empty:
        return []
    counted = masked_shares(of_first_seed(masks))
    notes = ["Only the first seed of each dataset is shown. Of arms with equal masks, only the first is shown."]
    where = Section(
        "Where the masks lie",
        notes,
        [Table("mask_shares", "Masked, % of the candidates", tables.show_shares(counted), counted)],
        [
            Picture(f"mask_{index}", f"Masked fraction by layer and projection, {name}", figures.draw_mask(group))
            for index, (name, group) in enumerate(counted.groupby("dataset", sort=False))
        ],
    )
    return [where, *_shared(study, mask_overlaps(masks))]


def _shared(study: Study, pairs: pd.DataFrame) -> list[Section]:
    if pairs.empty:
        return []
    compared = list(dict.fromkeys(informed_conditions(study.results)["arm"]))
    notes = [
        "Jaccard: the weights in both masks divided by the weights in either. By chance: the same for random masks of "
        "these sizes.",
        f"Pairs of arms are from the first seed. Pairs of seeds and of datasets are masks of {join_words(compared)}.",
    ]
    by_arm, others = pairs[pairs["between"] == "arms"], pairs[pairs["between"] != "arms"]
    pictures = []
    if len(by_arm):
        pictures.append(Picture("overlap_arms", "Jaccard of the arms' masks", figures.draw_arm_overlaps(by_arm)))
    if len(others):
        caption = f"Jaccard of the masks of {join_words(compared)} between seeds and datasets"
        figure = figures.draw_other_overlaps(others, study.styles[compared[0]].color)
        pictures.append(Picture("overlap_seeds", caption, figure))
    table = Table("overlaps", "Overlap of masks", tables.show_overlaps(pairs), pairs)
    return [Section("What the masks have in common", notes, [table], pictures)]


def training_section(study: Study) -> Section | None:
    """Show learning curves."""
    curves = study.curves
    if curves.empty:
        return None
    notes = ["Steps are counted from 1. Arms that do not train have no curve. The CSV file has every logged point."]
    caption = f"Dev {METRICS[HEADLINE].title} and training loss by step, one line per seed"
    return Section(
        "Learning curves",
        notes,
        [Table("curves", "How long the arms trained", tables.show_training(curves, study.summary), curves)],
        [Picture("curves", caption, figures.draw_curves(curves, study.styles))],
    )


def costs_section(study: Study) -> Section:
    """Show the headline metric against cost."""
    notes = [
        "fit: training and, for arms that mask, the gradient, the selection and the measurement.",
        "A gradient that several arms share counts in full for each of them.",
        "An arm that reads features computed for another arm is faster than it would be alone.",
        "Memory is the peak of the GPU, or of the process if there is no GPU.",
    ]
    table = Table("costs", "Means over seeds", tables.show_costs(study.summary), study.summary)
    title = METRICS[HEADLINE].title
    picture = Picture("costs", f"{_capitalized(title)} against cost", figures.draw_costs(study.summary, study.styles))
    return Section(f"Cost and {title}", notes, [table], [picture])


def expected_section(study: Study) -> Section:
    """Compare the expectation of the original study protocol with what was measured."""
    notes = [f"The original study protocol expects these values of {PROTOCOL_BACKBONE}.", *EXPECTATION_NOTES]
    if study.backbones != PROTOCOL_BACKBONE:
        notes.insert(1, f"Our values are from {study.backbones}, so the two cannot be compared.")
    table = Table("expected", figures.axis_title(METRICS[HEADLINE]), show_expected(study.summary))
    return Section("What the original study protocol expects", notes, [table])


def protocol_section(study: Study) -> Section:
    """Show splits, sizes, fingerprints, versions, devices and precision."""
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
    note = OPTIMISTIC_NOTE if (study.results["early_stop_on"] == "eval").any() else EVAL_READ_ONCE_NOTE
    return Section("Protocol", [note], [data, _made_with(study)])


def _made_with(study: Study) -> Table:
    results = study.results
    names = ("backbone", "backbone_fingerprint", "backbone_quantization", "device", "precision", "early_stop_on")
    values = [
        (name.replace("_", " "), str(value)[:40])
        for name in names
        if name in results
        for value in results[name].dropna()
    ]
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
"""The sections in the order of the page; one with nothing to show returns None or an empty list."""
