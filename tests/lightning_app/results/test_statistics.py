from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
)

from lightning_app.errors import UsageError
from lightning_app.results import statistics
from lightning_app.results.files import read_json, write_json, write_parquet
from lightning_app.results.metrics import METRICS
from lightning_app.results.predictions import Evaluation, evaluate, read_evaluation, stored_metrics
from lightning_app.results.row_values import jackknife
from lightning_app.results.statistics import (
    bootstrap_rows,
    half_width,
    holm,
    mcnemar_p,
    seed_intervals,
    smallest_detectable,
    standard_error,
    tost,
)

BASELINE = "baseline"
DECLARED = [("influence", BASELINE), ("influence", "random_matched")]


def differences(evaluations: Sequence[Evaluation], **options) -> list[statistics.Difference]:
    """Of every arm from the baseline, unless `pairs` says otherwise."""
    arms = dict.fromkeys(evaluation.arm for evaluation in evaluations)
    options = {"pairs": [(arm, BASELINE) for arm in arms if arm != BASELINE]} | options
    return statistics.differences(evaluations, **options)


def predictions(seed: int, rows: int = 400, classes: int = 4, strength: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, size=rows, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    logits = rng.normal(size=(rows, classes))
    logits[np.arange(rows), labels] += strength
    return labels, logits


def condition(arm: str, seed: int, strength: float = 1.0, rows: int = 400, dataset: str = "sst2") -> Evaluation:
    """Rows and labels of a dataset are those of every arm and seed; the noise of the logits is a condition's own."""
    labels, shared = predictions(0, rows)
    own = np.random.default_rng([seed, *arm.encode()]).normal(size=shared.shape)
    logits = shared + own
    logits[np.arange(rows), labels] += strength - 1
    return evaluate(dataset, arm, seed, np.arange(rows), labels, logits)


def study(seeds: int = 3, **strengths: float) -> list[Evaluation]:
    return [condition(arm, seed, strength) for arm, strength in strengths.items() for seed in range(seeds)]


# From logits to values a row


@pytest.mark.parametrize("classes", [2, 4, 14])
def test_every_metric_is_the_mean_of_its_values_and_equals_torchmetrics(classes):
    labels, logits = predictions(1, rows=500, classes=classes)
    evaluation = evaluate("sst2", "baseline", 0, np.arange(500), labels, logits)
    for name, values in evaluation.values.items():
        assert values.mean(dtype=np.float64) == pytest.approx(evaluation.metrics[name], abs=1e-6)
    target, scores = torch.tensor(labels), torch.tensor(logits)
    assert list(METRICS) == ["accuracy", "macro_f1", "nll", "ece"]
    assert evaluation.metrics["accuracy"] == pytest.approx(
        float(multiclass_accuracy(scores, target, classes, average="micro")), abs=1e-6
    )
    assert evaluation.metrics["macro_f1"] == pytest.approx(
        float(multiclass_f1_score(scores, target, classes, average="macro")), abs=1e-6
    )
    loss = torch.nn.functional.cross_entropy(scores, target)
    assert evaluation.metrics["nll"] == pytest.approx(float(loss), abs=1e-6)
    assert evaluation.metrics["ece"] == pytest.approx(
        float(multiclass_calibration_error(scores.softmax(-1), target, classes, n_bins=15)), abs=1e-6
    )


def test_a_class_neither_labelled_nor_predicted_does_not_count_in_macro_f1():
    labels, logits = predictions(2, classes=3)
    padded = np.concatenate([logits, np.full((len(labels), 1), -50.0)], axis=1)
    three, four = (evaluate("a", "b", 0, np.arange(len(labels)), labels, array) for array in (logits, padded))
    np.testing.assert_allclose(four.values["macro_f1"], three.values["macro_f1"], atol=1e-6)


def test_a_model_that_is_certain_is_in_the_last_bin_of_ece():
    """With three rows rightly 95 % sure, one wrongly certain: |3 * 0.05 - 1| / 4."""
    labels = np.array([0, 0, 0, 1])
    logits = np.array([[np.log(19), 0.0]] * 3 + [[1000.0, 0.0]])
    assert evaluate("a", "b", 0, np.arange(4), labels, logits).metrics["ece"] == pytest.approx(0.2125)


def test_the_jackknife_of_a_mean_is_its_bootstrap():
    labels, logits = predictions(3, rows=2000, classes=3)
    values = evaluate("a", "b", 0, np.arange(2000), labels, logits).values["nll"]
    unknown = jackknife(np.arange(2000), lambda chosen: float(values[chosen].mean()))
    drawn = bootstrap_rows([(np.arange(2000), values), (np.arange(2000), unknown)], 1000).std(axis=0)
    assert drawn[1] == pytest.approx(drawn[0], rel=0.2)  # 100 groups know it to 7 %


def test_the_jackknife_of_a_difference_is_that_of_the_difference():
    evaluations = [condition(arm, 0, rows=2000) for arm in ("baseline", "lora")]
    known = [evaluation.values["nll"] for evaluation in evaluations]
    values = [jackknife(np.arange(2000), lambda chosen, own=own: float(own[chosen].mean())) for own in known]
    drawn = [bootstrap_rows([(np.arange(2000), pair[0] - pair[1])], 1000)[:, 0].std() for pair in (known, values)]
    assert drawn[1] == pytest.approx(drawn[0], rel=0.2)


def test_the_jackknife_of_few_rows_leaves_out_one_after_the_other():
    rows, values = np.array([5, 9]), np.array([1.0, 3.0])
    assert jackknife(rows, lambda chosen: float(values[chosen].mean())).tolist() == [1.0, 3.0]
    assert jackknife(rows[:1], lambda chosen: float(values[:1][chosen].mean())).tolist() == [1.0]


@pytest.mark.parametrize("metric", ["macro_f1", "ece"])
def test_linearized_metrics_have_the_standard_error_of_scoring_each_resample_anew(metric):
    labels, logits = predictions(3, rows=600, classes=3, strength=2.0)
    logits *= 6  # overconfident in every bin: where a bin is nearly calibrated its sign is unsure

    def score(rows: np.ndarray) -> float:
        return evaluate("a", "b", 0, np.arange(len(rows)), labels[rows], logits[rows]).metrics[metric]

    anew = stats.bootstrap((np.arange(600),), score, n_resamples=1000, vectorized=False, rng=0).standard_error
    values = evaluate("a", "b", 0, np.arange(600), labels, logits).values[metric]
    drawn = bootstrap_rows([(np.arange(600), values)], 1000)[:, 0].std()
    assert drawn == pytest.approx(anew, rel=0.1)


def test_the_order_of_the_rows_does_not_matter():
    labels, logits = predictions(4)
    order = np.random.default_rng(0).permutation(400)
    straight = evaluate("a", "b", 0, np.arange(400), labels, logits)
    shuffled = evaluate("a", "b", 0, order, labels[order], logits[order])
    np.testing.assert_array_equal(shuffled.rows, straight.rows)
    for metric in METRICS:
        np.testing.assert_allclose(shuffled.values[metric], straight.values[metric], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logit_that_is_not_finite_is_refused_by_its_row(bad):
    labels, logits = predictions(5)
    logits[[7, 9], 2] = bad
    with pytest.raises(UsageError, match=r"sst2/lora/seed3: 2 of 400 rows .* the first is row 107"):
        evaluate("sst2", "lora", 3, np.arange(100, 500), labels, logits)


def test_predictions_that_make_no_sense_are_refused():
    labels, logits = predictions(6)
    rows = np.arange(400)
    for arguments in (
        (rows[1:], labels, logits),
        (rows, labels[1:], logits),
        (rows, labels, logits[:, 0]),
        (rows, labels.astype(float), logits),
        (rows[:0], labels[:0], logits[:0]),
    ):
        with pytest.raises(UsageError, match="needs integer rows"):
            evaluate("a", "b", 0, *arguments)
    with pytest.raises(UsageError, match="3 logits per row and labels from 0 to 3"):
        evaluate("a", "b", 0, rows, labels, logits[:, :3])
    with pytest.raises(UsageError, match="labels from -1"):
        evaluate("a", "b", 0, rows, labels - 1, logits)
    with pytest.raises(UsageError, match="needs two classes or more"):
        evaluate("a", "b", 0, rows, np.zeros(400, int), logits[:, :1])
    with pytest.raises(UsageError, match="row 5 more than once"):
        evaluate("a", "b", 0, np.where(rows == 6, 5, rows), labels, logits)


def leave(run: Path, logits: list[list[float]], **columns: list[int]) -> Path:
    """Leave predictions in the folder of a condition."""
    write_parquet(run / "predictions.parquet", pa.table({**columns, "logits": logits}))
    return run


def test_a_conditions_folder_is_read_as_it_was_written(tmp_path, write):
    labels, logits = predictions(7)
    rows = np.arange(400) * 3
    run = write.condition(tmp_path, "agnews", "lora", 4, 0.5)
    write.agreement(leave(run, logits.tolist(), row=rows.tolist(), label=labels.tolist()))
    read, direct = read_evaluation(run), evaluate("agnews", "lora", 4, rows, labels, logits)
    assert str(read) == "agnews/lora/seed4"
    np.testing.assert_array_equal(read.rows, rows)
    np.testing.assert_array_equal(read.labels, labels)
    for metric in METRICS:
        np.testing.assert_array_equal(read.values[metric], direct.values[metric])


def test_a_conditions_folder_that_is_not_whole_is_refused(tmp_path, write):
    with pytest.raises(UsageError, match=r"has no metrics\.json and no predictions\.parquet"):
        read_evaluation(tmp_path)
    run = write.condition(tmp_path, "agnews", "lora", 4, 0.5)
    leave(run, [[1.0, 2.0], [1.0]], row=[0, 1], label=[0, 1])
    with pytest.raises(UsageError, match=r"rows of \[1, 2\] logits"):
        read_evaluation(run)
    leave(run, [[1.0, 2.0], [1.0, 0.0]], row=[0, 1])
    with pytest.raises(UsageError, match=r"predictions\.parquet is damaged or incomplete"):
        read_evaluation(run)
    (run / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"predictions\.parquet is damaged or incomplete"):
        read_evaluation(run)


def test_predictions_that_do_not_give_the_scores_beside_them_are_refused(tmp_path, write):
    (run,) = write.study(tmp_path, seeds=1, baseline=0.75).glob("*/*/*")
    wrong = {"accuracy": 0.7502, "macro_f1": 0.43, "nll": 0.6, "ece": 0.9, "split_sizes": {"eval": 999}}
    for name, value in wrong.items():
        write_json(run / "metrics.json", read_json(run / "metrics.json") | {name: value})
        with pytest.raises(UsageError, match=r"predictions\.parquet .*(gives|has 1000 rows).* but metrics\.json has"):
            read_evaluation(run)
        write.condition(tmp_path, "sst2", "baseline", 0, 0.75)
    assert read_evaluation(run).metrics["accuracy"] == 0.75


def test_a_metric_that_was_not_recorded_comes_from_the_predictions(tmp_path, write):
    (run,) = write.study(tmp_path, seeds=1, baseline=0.75).glob("*/*/*")
    metrics = read_json(run / "metrics.json")
    write_json(run / "metrics.json", {key: value for key, value in metrics.items() if key != "ece"})
    assert read_evaluation(run).metrics["ece"] == metrics["ece"]
    assert stored_metrics(run)["ece"] == metrics["ece"]


# Means over seeds


def test_the_interval_of_a_mean_over_seeds_is_students_t():
    evaluations = study(baseline=1.0)
    row = seed_intervals(evaluations).set_index("metric").loc["accuracy"]
    scores = [evaluation.metrics["accuracy"] for evaluation in evaluations]
    assert row["seeds"] == 3
    assert row["mean"] == pytest.approx(np.mean(scores))
    # t quantile 4.302653 at 2 degrees of freedom, from a printed table
    assert row["high"] - row["mean"] == pytest.approx(4.302653 * np.std(scores, ddof=1) / np.sqrt(3), rel=1e-6)
    assert row["mean"] - row["low"] == pytest.approx(row["high"] - row["mean"])


def test_half_width_is_that_of_students_t_interval():
    values = [0.70, 0.72, 0.77]
    assert half_width(values) == pytest.approx(4.302653 * np.std(values, ddof=1) / np.sqrt(3), rel=1e-6)
    assert np.isnan(half_width([0.7]))


def test_one_seed_has_a_mean_and_no_interval():
    table = seed_intervals([condition("baseline", 0), condition("lora", 0), condition("lora", 1)])
    assert list(table["metric"][:4]) == list(METRICS)
    assert table["mean"].notna().all()
    assert table.set_index("arm").loc["baseline", ["low", "high"]].isna().all(axis=None)
    assert table.set_index("arm").loc["lora", ["low", "high"]].notna().all(axis=None)


# The two levels of a difference


def test_with_one_seed_the_interval_is_that_of_a_bootstrap_over_rows():
    pair = [condition("baseline", 0), condition("lora", 0, strength=1.5)]
    for found in differences(pair):
        moved = pair[1].values[found.metric] - pair[0].values[found.metric]
        plain = stats.bootstrap((moved,), np.mean, n_resamples=4000, method="BCa", rng=1)
        assert found.seeds == (0,)
        assert found.standard_error == pytest.approx(plain.standard_error, rel=0.05)
        width = found.high - found.low
        assert found.low == pytest.approx(plain.confidence_interval.low, abs=0.05 * width)
        assert found.high == pytest.approx(plain.confidence_interval.high, abs=0.05 * width)


def test_the_variance_of_crossed_seeds_and_rows_is_that_of_the_analysis_of_variance():
    rng = np.random.default_rng(0)
    seeds, rows = 4, 300
    values = rng.normal(0, 0.1, (seeds, 1)) + rng.normal(size=rows) + rng.normal(0, 2, (seeds, rows))
    by_seed, by_row = values.mean(1), values.mean(0)
    rest = values - by_seed[:, None] - by_row + values.mean()
    ms_seeds, ms_rows = rows * by_seed.var(ddof=1), seeds * by_row.var(ddof=1)
    ms_rest = (rest**2).sum() / ((seeds - 1) * (rows - 1))
    draws = bootstrap_rows([(np.arange(rows), one) for one in values], resamples=20_000)
    error, _ = standard_error(by_seed, draws, rows)
    assert error**2 == pytest.approx((ms_seeds + ms_rows - ms_rest) / (seeds * rows), rel=0.03)


def test_without_variance_from_the_rows_the_tests_are_the_t_tests_of_scipy_and_statsmodels():
    by_seed = np.array([0.004, -0.002, 0.006, 0.001, 0.003])
    error, df = standard_error(by_seed, np.zeros((10, 5)), num_rows=100)
    assert df == pytest.approx(4)
    assert 2 * min(tost(by_seed.mean(), error, df, margin=0)) == pytest.approx(stats.ttest_1samp(by_seed, 0).pvalue)
    whole, (_, above_low, _), (_, below_high, _) = ttost_paired(by_seed, np.zeros(5), -0.01, 0.01)
    assert tost(by_seed.mean(), error, df) == pytest.approx((above_low, below_high))
    assert max(tost(by_seed.mean(), error, df)) == pytest.approx(whole)


def test_the_critical_value_is_the_mean_of_both_levels_weighted_by_variance():
    by_seed = np.array([-1.0, 0.0, 1.0])  # variance of the mean 1/3
    draws = np.outer([-1.0, 0.0, 1.0], [1.0, 1.0, 1.0])  # covariance 1
    error, df = standard_error(by_seed, draws, num_rows=61)
    assert error**2 == pytest.approx(4 / 3)
    # printed table: 4.302653 at 2 and 2.000298 at 60 degrees of freedom
    assert stats.t.ppf(0.975, df) == pytest.approx((4.302653 / 3 + 2.000298) / (4 / 3), rel=1e-6)


def test_rows_of_a_seeds_own_count_as_part_of_its_seed():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 1, 500) + rng.normal(size=(4, 500))
    shared = bootstrap_rows([(np.arange(500), one) for one in values])
    own = bootstrap_rows([(np.arange(500) + 500 * seed, one) for seed, one in enumerate(values)])
    off_diagonal = ~np.eye(4, dtype=bool)
    assert np.cov(shared.T)[off_diagonal].min() > 0.5 / 500
    assert abs(np.cov(own.T)[off_diagonal]).max() < 0.2 / 500
    _, df = standard_error(values.mean(1), own, 500)
    assert df == pytest.approx(3, abs=0.5)


def simulate(rng, seeds: int, rows: int, by_seed: float, by_row: float, rest: float) -> tuple[np.ndarray, float]:
    """Return differences in correctness [seeds, rows] of two probit classifiers, and those over all seeds and rows."""
    mean, total = np.array([0.9, 1.1]), np.sqrt(1 + by_seed**2 + by_row**2 + rest**2)
    shape = (2, seeds, rows)
    latent = mean[:, None, None] + rng.normal(size=rows)  # how easy a row is for both
    latent = latent + rng.normal(0, by_seed, (2, seeds, 1)) + rng.normal(0, by_row, (2, 1, rows))
    right = latent + rng.normal(0, rest, shape) > 0
    return right[1].astype(np.float32) - right[0], float(np.diff(stats.norm.cdf(mean / total))[0])


DESIGNS = {"seeds decide": (0.3, 0.2, 0.2), "both": (0.1, 0.5, 0.3), "rows decide": (0.0, 0.7, 0.15)}


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("seeds", [3, 5])
def test_95_percent_intervals_cover_the_truth_about_95_times_in_100(seeds, design):
    rng, studies, rows = np.random.default_rng(seeds), 1500, 200
    covered = 0
    for _ in range(studies):
        values, truth = simulate(rng, seeds, rows, *DESIGNS[design])
        draws = bootstrap_rows([(np.arange(rows), one) for one in values], 150, int(rng.integers(2**31)))
        error, df = standard_error(values.mean(1), draws, rows)
        covered += abs(values.mean() - truth) <= stats.t.ppf(0.975, df) * error
    assert 0.94 <= covered / studies <= 0.98


def test_the_percentile_interval_would_not():
    """Why the interval is no percentile interval: resampling three seeds misses the truth five times too often."""
    rng, studies, rows = np.random.default_rng(0), 400, 200
    covered = 0
    for _ in range(studies):
        values, truth = simulate(rng, 3, rows, *DESIGNS["seeds decide"])
        drawn = rng.integers(3, size=(150, 3))
        weights = rng.multinomial(rows, np.full(rows, 1 / rows), size=150) / rows
        means = np.take_along_axis(weights @ values.T, drawn, axis=1).mean(1)
        low, high = np.percentile(means, [2.5, 97.5])
        covered += low <= truth <= high
    assert covered / studies < 0.85


# Differences between arms


def test_a_difference_is_taken_seed_by_seed_on_the_same_rows():
    evaluations = study(baseline=1.0, lora=1.5)
    baseline, lora = evaluations[:3], evaluations[3:]
    found = {one.metric: one for one in differences(evaluations)}
    for metric in METRICS:
        expected = [a.metrics[metric] - b.metrics[metric] for a, b in zip(lora, baseline, strict=True)]
        assert found[metric].by_seed == pytest.approx(expected)
        assert found[metric].estimate == pytest.approx(np.mean(expected))
        assert found[metric].low < found[metric].estimate < found[metric].high
    accuracy = found["accuracy"]
    assert (accuracy.dataset, accuracy.arm, accuracy.reference, accuracy.rows) == ("sst2", "lora", "baseline", 400)
    assert accuracy.seeds == (0, 1, 2)
    assert accuracy.estimate > 0
    assert found["nll"].estimate < 0


def test_the_p_value_the_interval_and_the_smallest_detectable_difference_agree():
    for found in differences(study(baseline=1.0, lora=1.2, full_ft=3.0)):
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)
        half = (found.high - found.low) / 2
        assert stats.t.ppf(0.975, found.df) * found.standard_error == pytest.approx(half)
        assert half < found.smallest_detectable < 2 * half


def test_equal_arms_differ_by_nothing_and_are_equivalent():
    baseline = study(baseline=1.0)
    same = [replace(one, arm="lora") for one in baseline]
    for found in differences(baseline + same):
        assert (found.estimate, found.low, found.high, found.smallest_detectable) == (0, 0, 0, 0)
        assert found.p_value == 1
        assert found.p_equivalence == 0
        assert set(found.mcnemar) <= {1.0}


def test_the_result_depends_on_the_seed_alone():
    evaluations = study(baseline=1.0, lora=1.5, influence=1.0)
    first = differences(evaluations)
    assert differences(evaluations) == first
    assert differences(evaluations, seed=1) != first
    assert differences(list(reversed(evaluations)), pairs=[("lora", "baseline"), ("influence", "baseline")]) == first


def test_a_pairs_result_does_not_depend_on_the_other_arms():
    evaluations = study(baseline=1.0, lora=1.5, influence=1.0)
    among, alone = differences(evaluations)[0], differences(evaluations[:6])[0]
    assert among.arm == alone.arm == "lora"
    assert among.standard_error == pytest.approx(alone.standard_error, rel=1e-5)


def test_the_pairs_that_are_asked_for_are_compared_in_their_order():
    evaluations = study(baseline=1.0, influence=1.0, random_matched=1.0)
    compared = differences(evaluations, pairs=DECLARED, metrics=["accuracy"], resamples=2)
    assert [(each.arm, each.reference) for each in compared] == DECLARED
    assert differences(study(baseline=1.0)) == []


def test_every_dataset_is_compared_on_its_own():
    one = study(baseline=1.0, lora=1.5)
    other = [replace(evaluation, dataset="yelp") for evaluation in one]
    found = differences(one + other, metrics=["nll"])
    assert [one.dataset for one in found] == ["sst2", "yelp"]
    assert replace(found[1], dataset="sst2") == found[0]


def test_seeds_that_only_one_arm_has_are_left_out_and_named():
    evaluations = [condition("baseline", seed) for seed in (0, 1, 2)] + [condition("lora", seed) for seed in (1, 2, 5)]
    found = differences(evaluations)[0]
    assert found.seeds == (1, 2)
    assert found.left_out == (0, 5)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UsageError, match="sst2 has no baseline for the difference lora minus baseline, only lora"):
        differences(study(lora=1.0))
    with pytest.raises(UsageError, match="has no full_ft"):
        differences(study(baseline=1.0), pairs=[("full_ft", "baseline")])
    with pytest.raises(UsageError, match=r"lora has the seeds \[1\] and baseline the seeds \[0\], none in common"):
        differences([condition("baseline", 0), condition("lora", 1)])
    with pytest.raises(UsageError, match=r"sst2/lora/seed0 and sst2/baseline/seed0 .* 100 rows are in one only"):
        differences([condition("baseline", 0), condition("lora", 0, rows=300)])
    lora = condition("lora", 0)
    with pytest.raises(UsageError, match="400 rows differ"):
        differences([condition("baseline", 0), replace(lora, labels=lora.labels + 1)])
    with pytest.raises(UsageError, match="sst2/lora/seed0 is given twice"):
        differences([lora, lora])
    with pytest.raises(UsageError, match="is given twice"):
        seed_intervals([lora, lora])
    with pytest.raises(UsageError, match="Unknown metric 'f1'"):
        differences(study(baseline=1.0, lora=1.0), metrics=["f1"])
    with pytest.raises(UsageError, match="resamples must be 2 or more, found 1"):
        differences(study(baseline=1.0, lora=1.0), resamples=1)


# Tests, against published examples


def test_mcnemar_agrees_with_armitage_and_berry():
    """Two media for culturing tubercle bacilli, 50 specimens: both 20, only A 12, only B 2, neither 16; P = 0.0129.

    Armitage and Berry, Statistical Methods in Medical Research, 3rd edition, 1994, page 127.
    """
    medium_a = np.repeat([1, 1, 0, 0], [20, 12, 2, 16])
    medium_b = np.repeat([1, 0, 1, 0], [20, 12, 2, 16])
    assert mcnemar_p(medium_a, medium_b) == pytest.approx(0.0129, abs=5e-5)
    assert mcnemar_p(medium_b, medium_a) == mcnemar_p(medium_a, medium_b)


def test_mcnemar_is_taken_a_seed_and_for_accuracy_alone():
    evaluations = study(baseline=1.0, lora=1.5)
    found = {one.metric: one for one in differences(evaluations)}
    assert found["nll"].mcnemar == ()
    for seed, p in enumerate(found["accuracy"].mcnemar):
        right, before = (evaluations[place].values["accuracy"] for place in (3 + seed, seed))
        only = [int(((right == 1) & (before == 0)).sum()), int(((right == 0) & (before == 1)).sum())]
        assert p == pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)


def test_holms_correction_agrees_with_a_published_example():
    """The example in the documentation of pingouin's Holm correction."""
    p_values, corrected = [0.50, 0.003, 0.32, 0.054, 0.0003], [0.64, 0.012, 0.64, 0.162, 0.0015]
    one = differences(study(baseline=1.0, influence=1.5), metrics=["accuracy"], resamples=2)[0]
    family = [replace(one, dataset=f"d{index}", p_value=p, mcnemar=(p,)) for index, p in enumerate(p_values)]
    result = holm(family, lambda each: True)
    assert [one.p_holm for one in result] == pytest.approx(corrected)
    assert [one.mcnemar_holm[0] for one in result] == pytest.approx(corrected)


def test_only_the_declared_family_is_corrected():
    evaluations = study(baseline=1.0, influence=1.2, random_matched=1.1, lora=1.3)
    pairs = [*DECLARED, ("lora", BASELINE)]
    found = differences(evaluations, pairs=pairs, declared=DECLARED, resamples=50)
    corrected = holm(found, lambda each: each.declared)
    inside = [one for one in corrected if not np.isnan(one.p_holm)]
    assert [(one.arm, one.reference, one.metric) for one in inside] == [
        ("influence", "baseline", "accuracy"),
        ("influence", "random_matched", "accuracy"),
    ]
    assert [len(one.mcnemar_holm) for one in inside] == [3, 3]
    assert [one for one in corrected if np.isnan(one.p_holm)] == [
        one
        for one in found
        if (one.arm, one.reference, one.metric) not in {(one.arm, one.reference, one.metric) for one in inside}
    ]
    assert holm(found, lambda each: False) == found


def test_equivalence_agrees_with_published_examples():
    # TOSTER, TOSTpaired: 65 pairs, means 5.83 and 5.75, deviations 1.17 and 1.29, correlation 0.75, bounds of 0.4 dz
    deviation = np.sqrt(1.17**2 + 1.29**2 - 2 * 0.75 * 1.17 * 1.29)
    p_values = tost(0.08, deviation / np.sqrt(65), 64, margin=0.4 * deviation)
    assert p_values == pytest.approx((0.00009531728, 0.00770235), rel=1e-4)
    # NCSS, equivalence of two means: the yields of two plants, bounds of 110
    assert tost(-8.1153846, 51.114285, 27, margin=110) == pytest.approx((0.02821, 0.01436), abs=5e-6)


def test_equivalence_is_shown_where_the_90_percent_interval_is_within_the_margin():
    for estimate in (0.0, 0.004, 0.006, -0.006, 0.02):
        reach = abs(estimate) + stats.t.ppf(0.95, 7) * 0.002
        assert (max(tost(estimate, 0.002, 7, margin=0.01)) < 0.05) == (reach < 0.01)


@pytest.mark.parametrize("pairs", [2, 3, 5, 30])
def test_the_smallest_detectable_difference_is_that_of_a_paired_t_test(pairs):
    expected = TTestPower().solve_power(nobs=pairs, alpha=0.05, power=0.8)
    assert smallest_detectable(1 / np.sqrt(pairs), pairs - 1) == pytest.approx(expected, rel=1e-5)


def test_the_smallest_detectable_difference_agrees_with_a_published_example():
    """Half a standard deviation takes 34 pairs (Faul et al., G*Power 3, 2007, and Cohen's tables)."""
    assert smallest_detectable(1 / np.sqrt(34), 33) < 0.5 < smallest_detectable(1 / np.sqrt(33), 32)


@pytest.mark.parametrize("df", [1.0, 1.7, 2.0, 12.5, 871.0, 69_999.0, 1e9])
def test_the_smallest_detectable_difference_is_found_for_any_degrees_of_freedom(df):
    rng = np.random.default_rng(0)
    statistic = (smallest_detectable(1.0, df) + rng.normal(size=200_000)) / np.sqrt(rng.chisquare(df, 200_000) / df)
    assert np.mean(statistic > stats.t.ppf(0.975, df)) == pytest.approx(0.8, abs=0.005)
