import re

import numpy as np
import pytest

from lightning_app.results import statistics, verdict
from lightning_app.results.predictions import Evaluation, evaluate
from lightning_app.results.statistics import Difference, holm
from lightning_app.results.verdict import Verdict

ROWS = 3000
CLAIM = (("influence", "baseline"), ("influence", "random_matched"))


def evaluation(
    arm: str, seed: int, accuracy: float, own: float, rows: int = ROWS, dataset: str = "sst2", draw: int = 0
) -> Evaluation:
    """Return a condition whose true accuracy is given.

    A share `own` of its rows is right or wrong by chance of its own; the rest by how easy the row is, to all alike.
    """
    easy = np.random.default_rng([draw, *dataset.encode()]).random(rows)
    chance = np.random.default_rng([draw, seed, *arm.encode()])
    ease = np.where(chance.random(rows) < own, chance.random(rows), easy)
    logits = np.stack([ease < accuracy, ease >= accuracy], axis=1) * 2.0
    return evaluate(dataset, arm, seed, np.arange(rows), np.zeros(rows, int), logits)


def study(seeds: int = 5, own: float = 0.1, rows: int = ROWS, dataset: str = "sst2", draw: int = 0, **accuracy: float):
    return [
        evaluation(arm, seed, share, own, rows, dataset, draw)
        for arm, share in accuracy.items()
        for seed in range(seeds)
    ]


def differences(evaluations: list[Evaluation], resamples: int = 2000) -> list[Difference]:
    """Those of the verdict_pairs, dataset by dataset, with Holm's correction over all of them."""
    found = statistics.differences(evaluations, CLAIM, CLAIM, ["accuracy"], resamples)
    return holm(found, lambda each: each.declared)


def verdict_on(evaluations: list[Evaluation], resamples: int = 500) -> Verdict:
    return verdict.verdict(*differences(evaluations, resamples))


def test_masking_that_beats_the_baseline_and_random_weights_helps():
    judged = verdict_on(study(baseline=0.70, random_matched=0.70, influence=0.75))
    assert judged.outcome == "helps"
    assert judged.reference.estimate == pytest.approx(0.05, abs=0.02)
    assert judged.reference.reference == "baseline"
    assert judged.control.reference == "random_matched"
    assert judged.reference.p_holm < 0.05
    assert judged.control.p_holm < 0.05
    figure = f"{100 * judged.reference.estimate:+.2f} points, 95 % interval {100 * judged.reference.low:+.2f} to"
    assert judged.reason.startswith(f"influence beats both baseline ({figure}")
    assert "but by less" not in judged.reason


def test_masking_that_is_worse_than_the_baseline_hurts():
    judged = verdict_on(study(baseline=0.70, random_matched=0.60, influence=0.66))
    assert judged.outcome == "hurts"
    assert judged.reason.startswith("influence is worse than baseline (-3.49 points")


def test_masking_that_changes_little_makes_no_difference():
    judged = verdict_on(study(own=0.02, baseline=0.70, random_matched=0.65, influence=0.70))
    assert judged.outcome == "no difference"
    assert judged.reason.startswith("influence differs by less than the margin of 1.00 points from baseline")


def test_a_study_that_is_too_small_cannot_tell():
    judged = verdict_on(study(rows=200, own=0.5, baseline=0.70, random_matched=0.70, influence=0.72))
    assert judged.outcome == "cannot tell"
    assert "between influence and baseline" in judged.reason
    assert f"only differences of {100 * judged.reference.smallest_detectable:.1f} points or more" in judged.reason
    assert judged.reference.smallest_detectable > 0.02


def test_masking_that_gains_what_random_weights_gain_makes_no_difference():
    judged = verdict_on(study(own=0.02, baseline=0.70, random_matched=0.75, influence=0.75))
    assert judged.outcome == "no difference"
    assert judged.reference.p_holm < 0.05
    assert re.match(
        r"influence beats baseline \(.*\), but random_matched \(.*\) by less than the margin", judged.reason
    )


def test_masking_that_gains_less_than_random_weights_does_not_help():
    assert verdict_on(study(baseline=0.70, random_matched=0.80, influence=0.75)).outcome == "no difference"


def test_masking_that_may_or_may_not_beat_random_weights_cannot_tell():
    judged = verdict_on(study(rows=400, own=0.3, baseline=0.50, random_matched=0.77, influence=0.79))
    assert judged.outcome == "cannot tell"
    assert judged.reference.p_holm < 0.05
    assert "between influence and random_matched" in judged.reason


@pytest.mark.parametrize("random_matched", [0.50, 0.95])
def test_masking_that_may_or_may_not_beat_the_baseline_cannot_tell_whatever_random_weights_do(random_matched):
    judged = verdict_on(study(rows=400, own=0.3, baseline=0.77, random_matched=random_matched, influence=0.79))
    assert judged.outcome == "cannot tell"
    assert "between influence and baseline" in judged.reason


def test_a_small_gain_that_is_shown_helps_and_a_small_loss_hurts_and_both_are_called_small():
    gain = verdict_on(study(rows=20_000, own=0.005, baseline=0.700, random_matched=0.700, influence=0.705))
    loss = verdict_on(study(rows=20_000, own=0.005, baseline=0.700, random_matched=0.700, influence=0.695))
    assert (gain.outcome, loss.outcome) == ("helps", "hurts")
    for judged in (gain, loss):
        assert judged.reason.endswith("but by less than the margin of 1.00 points.")


def test_with_one_seed_the_verdict_is_on_the_rows_and_says_so():
    arms = {"baseline": 0.70, "random_matched": 0.70, "influence": 0.76}
    judged = verdict_on(study(seeds=1, **arms))
    assert judged.outcome == "helps"
    assert judged.reason.endswith("; with one seed this holds for other rows, not for other seeds.")
    assert "one seed" not in verdict_on(study(seeds=2, **arms)).reason
    without = [one for one in study(**arms) if one.arm != "random_matched" or one.seed == 3]
    assert "with one seed" in verdict_on(without).reason


def test_every_dataset_has_a_verdict_and_all_are_one_family():
    unclear = [
        one
        for name in ("agnews", "dbpedia", "yelp")
        for one in study(dataset=name, rows=300, own=0.5, baseline=0.7, random_matched=0.7, influence=0.71)
    ]
    gain = study(rows=1500, own=0.15, baseline=0.70, random_matched=0.66, influence=0.725, draw=1)
    alone = verdict_on(gain, 2000)
    compared = differences(gain + unclear)
    family = [verdict.verdict(*compared[place : place + 2]) for place in range(0, 8, 2)]
    assert [judged.dataset for judged in family] == ["sst2", "agnews", "dbpedia", "yelp"]
    assert alone.reference.p_value == family[0].reference.p_value
    assert alone.reference.p_holm < 0.05 < family[0].reference.p_holm
    assert (alone.outcome, family[0].outcome) == ("helps", "cannot tell")


def test_masking_that_does_nothing_is_hardly_ever_said_to_help_or_to_hurt(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels calls it in every correction: a second with torch loaded
    outcomes = [
        verdict_on(study(3, 0.4, 300, draw=draw, baseline=0.7, random_matched=0.7, influence=0.7), 100).outcome
        for draw in range(150)
    ]
    assert outcomes.count("helps") + outcomes.count("hurts") <= 0.05 * len(outcomes)
    assert "cannot tell" in outcomes
