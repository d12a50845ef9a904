"""Means over seeds, paired differences of arms and their tests, from the evaluations of a study's conditions.

In the order of the data: `seed_intervals` gives each arm's mean over seeds, `differences` compares arms on the rows and
seeds that they share, and `holm` corrects the p-values of the comparisons that were declared.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq
from scipy.special import stdtridf
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import ttest_power

from lightning_app.errors import UsageError
from lightning_app.results.metrics import HEADLINE, METRICS
from lightning_app.results.predictions import Evaluation

Pair = tuple[str, str]
"""An arm and the reference that it is compared with."""

EQUIVALENCE_MARGIN = 0.01
"""A difference within it, either way, counts as none. The original study protocol sets it to 1 percentage point. In
nats of NLL it is a change by 1 % of the probability given to the right class."""

ALPHA = 0.05
"""Level of every test; intervals have a confidence of 1 - ALPHA."""

POWER = 0.8
"""Probability with which the smallest detectable difference is detected."""

RESAMPLES = 2000


def seed_intervals(evaluations: Iterable[Evaluation]) -> pd.DataFrame:
    """Return the mean over seeds of each arm and metric, with its 95 % interval by Student's t.

    The interval holds for other seeds on the same eval rows; `differences` also counts the rows as a sample.

    Returns:
        Columns `dataset`, `arm`, `metric`, `seeds` (how many), `mean`, `low` and `high`; with one seed the last two
        are NaN.

    Raises:
        UsageError: If a condition is given twice.
    """
    table = []
    for dataset, arms in _by_arm(evaluations).items():
        for arm, seeds in arms.items():
            for metric in METRICS:
                scores = np.array([evaluation.metrics[metric] for evaluation in seeds.values()])
                mean, half = scores.mean(), half_width(scores)
                table.append((dataset, arm, metric, len(scores), mean, mean - half, mean + half))
    return pd.DataFrame(table, columns=["dataset", "arm", "metric", "seeds", "mean", "low", "high"])


def half_width(values: Sequence[float] | np.ndarray | pd.Series) -> float:
    """Return half of the 95 % interval of a mean by Student's t; NaN for a single value."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(1 - ALPHA / 2, len(values) - 1) * stats.sem(values))


@dataclass(frozen=True)
class Difference:
    """An arm minus a reference by one metric, on the rows and seeds that both have.

    Attributes:
        seeds: Compared seeds. With one, the interval and the tests hold for other rows only, not for other seeds.
        left_out: Seeds that only one of the two has.
        rows: Number of rows per seed; the smallest if seeds differ.
        by_seed: The difference in each seed.
        estimate: Mean of the differences.
        standard_error: See `standard_error`.
        df: Degrees of freedom of Student's t.
        low: Lower end of the 95 % interval.
        high: Its upper end.
        p_value: Two-sided, that there is no difference: below `ALPHA` exactly where the interval leaves out 0.
        p_equivalence: That the difference is `EQUIVALENCE_MARGIN` or more, either way; see `tost`.
        smallest_detectable: See `smallest_detectable`.
        declared: Whether a verdict is based on it; every other difference is exploratory.
        mcnemar: McNemar's exact p of each seed, where the metric is a proportion of the rows; empty otherwise.
        p_holm: `p_value` after Holm's correction over the declared differences; NaN for others.
        mcnemar_holm: `mcnemar` after Holm's correction over the seeds of the declared differences; empty for others.
    """

    dataset: str
    arm: str
    reference: str
    metric: str
    seeds: tuple[int, ...]
    left_out: tuple[int, ...]
    rows: int
    by_seed: tuple[float, ...]
    estimate: float
    standard_error: float
    df: float
    low: float
    high: float
    p_value: float
    p_equivalence: float
    smallest_detectable: float
    declared: bool = False
    mcnemar: tuple[float, ...] = ()
    p_holm: float = float("nan")
    mcnemar_holm: tuple[float, ...] = ()


def differences(
    evaluations: Iterable[Evaluation],
    pairs: Sequence[Pair],
    declared: Collection[Pair] = (),
    metrics: Iterable[str] = METRICS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Difference]:
    """Compare arms in each dataset by a hierarchical bootstrap over seeds and rows.

    Rows are resampled once for all arms and seeds of a dataset, since all of them predict the same ones: a pair's
    result does not depend on the other arms. See `standard_error` for the two levels.

    Args:
        evaluations: Of any number of datasets; one dataset at a time bounds the memory.
        pairs: Compared in every dataset.
        declared: Pairs of which a verdict is made, by the headline metric.
        metrics: Names in the registry.
        resamples: How often the rows are resampled; two or more.
        seed: Seed of the bootstrap; the same seed gives the same result.

    Raises:
        UsageError: If an arm or metric is missing, the two have no seed in common, their rows or labels differ, or a
            condition is given twice; or for fewer than two resamples.
    """
    metrics, results = list(metrics), list[Difference]()
    if unknown := [name for name in metrics if name not in METRICS]:
        raise UsageError(f"Unknown metric {unknown[0]!r}. Known are: {', '.join(METRICS)}.")
    if resamples < 2:
        raise UsageError(f"resamples must be 2 or more, found {resamples}. The default is {RESAMPLES}.")
    for dataset, arms in _by_arm(evaluations).items():
        matches = [_match(dataset, arms, pair) for pair in pairs]
        compared = [(match, metric) for match in matches for metric in metrics]
        samples = [sample for match, metric in compared for sample in match.samples(metric)]
        if not samples:
            continue
        draws = iter(bootstrap_rows(samples, resamples, seed).T)
        for match, metric in compared:
            difference = _difference(match, metric, np.stack([next(draws) for _ in match.pairs], axis=1))
            is_declared = metric == HEADLINE and (difference.arm, difference.reference) in declared
            results.append(replace(difference, declared=is_declared))
    return results


@dataclass(frozen=True)
class _Match:
    """Two arms' evaluations of the same seeds and rows."""

    pairs: list[tuple[Evaluation, Evaluation]]
    left_out: tuple[int, ...]

    def samples(self, metric: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the row ids and the differences of the row values of each seed."""
        for arm, reference in self.pairs:
            yield reference.rows, arm.values[metric] - reference.values[metric]


def _by_arm(evaluations: Iterable[Evaluation]) -> dict[str, dict[str, dict[int, Evaluation]]]:
    """Return the evaluation of each dataset, arm and seed, in the order of appearance."""
    by_dataset: dict[str, dict[str, dict[int, Evaluation]]] = {}
    for evaluation in evaluations:
        seeds = by_dataset.setdefault(evaluation.dataset, {}).setdefault(evaluation.arm, {})
        if evaluation.seed in seeds:
            raise UsageError(f"{evaluation} is given twice. Leave one out.")
        seeds[evaluation.seed] = evaluation
    return by_dataset


def _match(dataset: str, arms: dict[str, dict[int, Evaluation]], pair: Pair) -> _Match:
    for arm in pair:
        if arm not in arms:
            raise UsageError(
                f"{dataset} has no {arm} for the difference {pair[0]} minus {pair[1]}, only {', '.join(arms)}. Run it."
            )
    arm_seeds, reference_seeds = arms[pair[0]], arms[pair[1]]
    if not (common := sorted(arm_seeds.keys() & reference_seeds.keys())):
        raise UsageError(
            f"{dataset}: {pair[0]} has the seeds {sorted(arm_seeds)} and {pair[1]} the seeds "
            f"{sorted(reference_seeds)}, none in common. Run both with the same seeds."
        )
    for seed in common:
        _check_same_rows(arm_seeds[seed], reference_seeds[seed])
    left_out = tuple(sorted(arm_seeds.keys() ^ reference_seeds.keys()))
    return _Match([(arm_seeds[seed], reference_seeds[seed]) for seed in common], left_out)


def _check_same_rows(arm: Evaluation, reference: Evaluation) -> None:
    advice = "Run both on the same data and eval_size."
    if not np.array_equal(arm.rows, reference.rows):
        unshared = len(np.setxor1d(arm.rows, reference.rows))
        raise UsageError(
            f"{arm} and {reference} must predict the same rows, but {unshared} rows are in one only. {advice}"
        )
    if not np.array_equal(arm.labels, reference.labels):
        unlike = np.count_nonzero(arm.labels != reference.labels)
        raise UsageError(f"{arm} and {reference} must have the same labels, but {unlike} rows differ. {advice}")


def bootstrap_rows(
    samples: Sequence[tuple[np.ndarray, np.ndarray]], resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Resample rows with replacement, the same rows in every sample.

    Args:
        samples: Row ids [rows] and values [rows] of each sample. Samples need not have the same rows; what they share
            is drawn for all of them alike.
        resamples: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        How far the mean of each sample moves, to first order: float32 [resamples, samples].
    """
    distinct = {id(ids): ids for ids, _ in samples}  # many samples share the array of their rows
    rows = np.unique(np.concatenate(list(distinct.values())))
    places = {key: np.searchsorted(rows, ids) for key, ids in distinct.items()}
    centred = np.zeros((len(samples), len(rows)), np.float32)
    for moved, (ids, values) in zip(centred, samples, strict=True):
        moved[places[id(ids)]] = (values - values.mean(dtype=np.float64)) / len(ids)
    rng, parts = np.random.default_rng(seed), []
    for start in range(0, resamples, 50):  # 50 at a time: the weights of all would take gigabytes
        drawn = rng.integers(len(rows), size=(min(50, resamples - start), len(rows)), dtype=np.int32)
        weights = np.stack([np.bincount(draw, minlength=len(rows)) for draw in drawn]).astype(np.float32)
        parts.append(weights @ centred.T)
    return np.concatenate(parts)


def standard_error(by_seed: np.ndarray, draws: np.ndarray, num_rows: int) -> tuple[float, float]:
    """Return the standard error of a mean over seeds, with seeds and rows both taken as samples.

    Seeds and rows are crossed: all seeds predict the same rows. So the mean m of the S per-seed scores varies by

        var(m) = s^2 / S + c

    where s^2 is the variance between the per-seed scores, and c the covariance of two seeds' scores when the rows are
    drawn anew: averaging over seeds does not remove what is peculiar to the rows. c is the mean covariance between
    seeds over the bootstrap's resamples of rows (near 0 where seeds have rows of their own). Seeds are not resampled:
    over all resamples of S seeds their mean varies by s^2 / S times (S - 1) / S, and the formula has no such factor.

    Each level has a quantile of its own, and the critical value is their mean weighted by variance (Cochran and Cox,
    Experimental Designs, 1950): t with S - 1 degrees of freedom if seeds decide, with many if rows do.
    The degrees of freedom returned are those of the t distribution that has this critical value at `ALPHA`.

    Measured coverage of 95 % intervals in percent, lowest to highest of six designs (seeds decide, rows decide, both,
    neither, and twice with other rows for each seed), from 4,000 simulated studies of 300 rows each:

        seeds                                  2               3               5
        this interval                     93.6 to 97.5    95.2 to 96.6    94.9 to 96.6
        percentiles of both levels        65.2 to 98.7    76.6 to 99.5    85.5 to 99.6
        Student's t over the seeds alone  84.5 to 95.0    65.6 to 95.6    43.3 to 95.2

    With one seed there is no s^2: var(m) is the variance over the resamples, which says nothing about other seeds.

    Args:
        by_seed: Scores [seeds].
        draws: How far they move in resamples of the rows [resamples, seeds]; see `bootstrap_rows`.
        num_rows: Rows behind each score.

    Returns:
        The standard error, and degrees of freedom for Student's t.
    """
    seeds, row_covariance = len(by_seed), np.atleast_2d(np.cov(draws, rowvar=False))
    if seeds == 1:
        return float(np.sqrt(row_covariance[0, 0])), float(max(num_rows - 1, 1))
    between = np.var(by_seed, ddof=1) / seeds
    shared = max(row_covariance[~np.eye(seeds, dtype=bool)].mean(), 0)
    if not between + shared:
        return 0.0, float(seeds - 1)
    quantiles = stats.t.ppf(1 - ALPHA / 2, [seeds - 1, max(num_rows - 1, 1)])
    critical = np.average(quantiles, weights=[between, shared])
    return float(np.sqrt(between + shared)), float(stdtridf(1 - ALPHA / 2, critical))


def tost(estimate: float, standard_error: float, df: float, margin: float = EQUIVALENCE_MARGIN) -> tuple[float, float]:
    """Test a difference against a margin by two one-sided t-tests.

    See Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987. The standard error has the variance of both seeds and rows.
    `ttost_paired` over the seeds would need two seeds and ignore that the eval rows are a sample, so it would call arms
    equivalent that are equivalent on these rows only.

    Args:
        estimate: The difference.
        standard_error: Its standard error, from `standard_error`.
        df: Degrees of freedom.
        margin: In the unit of the difference.

    Returns:
        The p-values that the difference is -margin or less, and that it is margin or more. If both are below `ALPHA`,
        the difference is within the margin: its 90 % interval lies inside.
    """
    scale = max(standard_error, np.finfo(float).tiny)
    with np.errstate(over="ignore"):
        return float(stats.t.sf((margin + estimate) / scale, df)), float(stats.t.sf((margin - estimate) / scale, df))


def smallest_detectable(standard_error: float, df: float) -> float:
    """Return the true difference that the t-test at `ALPHA` finds with probability `POWER`, by the noncentral t.

    Args:
        standard_error: Standard error of the difference.
        df: Its degrees of freedom.

    Returns:
        The difference, in the unit of the standard error.
    """
    critical = stats.t.ppf(1 - ALPHA / 2, df)

    def lacking(shift: float) -> float:
        # the one tail that matters: the other has a probability below 1e-5, and scipy loses it to NaN
        return POWER - ttest_power(shift, 1, ALPHA / 2, df=df, alternative="larger")

    return float(standard_error * brentq(lacking, critical / 2, 2 * critical + 2))


def mcnemar_p(first: np.ndarray, second: np.ndarray) -> float:
    """Return McNemar's exact two-sided p that two classifiers err equally often.

    Args:
        first: Whether the first is right [rows].
        second: Whether the second is.
    """
    cells = 2 * np.asarray(first, bool) + np.asarray(second, bool)
    return float(mcnemar(np.bincount(cells, minlength=4).reshape(2, 2), exact=True).pvalue)


def _difference(match: _Match, metric: str, draws: np.ndarray) -> Difference:
    (first, reference), rows = match.pairs[0], min(len(arm.rows) for arm, _ in match.pairs)
    by_seed = np.array([arm.metrics[metric] - other.metrics[metric] for arm, other in match.pairs])
    estimate, (error, df) = float(by_seed.mean()), standard_error(by_seed, draws, rows)
    half = stats.t.ppf(1 - ALPHA / 2, df) * error
    exact = [
        mcnemar_p(*(evaluation.values[metric] for evaluation in pair))
        for pair in match.pairs
        if METRICS[metric].is_proportion
    ]
    return Difference(
        first.dataset,
        first.arm,
        reference.arm,
        metric,
        seeds=tuple(arm.seed for arm, _ in match.pairs),
        left_out=match.left_out,
        rows=rows,
        by_seed=tuple(by_seed.tolist()),
        estimate=estimate,
        standard_error=error,
        df=df,
        low=estimate - half,
        high=estimate + half,
        p_value=2 * min(tost(estimate, error, df, margin=0)),
        p_equivalence=max(tost(estimate, error, df)),
        smallest_detectable=smallest_detectable(error, df),
        mcnemar=tuple(exact),
    )


def holm(differences: Sequence[Difference], belongs: Callable[[Difference], bool]) -> list[Difference]:
    """Fill in `p_holm` and `mcnemar_holm` by Holm's step-down correction (Scand. J. Statist. 6, 1979).

    Args:
        differences: Of all datasets of the study: the family reaches over all of them.
        belongs: Whether a difference is in the family; others are left as they are.
    """
    family = [difference for difference in differences if belongs(difference)]
    if not family:
        return list(differences)
    p_values = iter(multipletests([member.p_value for member in family], method="holm")[1].tolist())
    by_seed = [p for member in family for p in member.mcnemar]
    exact = iter(multipletests(by_seed, method="holm")[1].tolist() if by_seed else ())
    return [
        replace(each, p_holm=next(p_values), mcnemar_holm=tuple(next(exact) for _ in each.mcnemar))
        if belongs(each)
        else each
        for each in differences
    ]
