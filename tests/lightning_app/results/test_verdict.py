import re

import numpy as np
import pytest

from lightning_app.errors import UsageError
from lightning_app.results.statistics import Evaluation, Verdict, differences, evaluate, verdicts

ROWS = 3000


def evaluation(
    arm: str, seed: int, accuracy: float, own: float, rows: int = ROWS, dataset: str = "sst2", draw: int = 0
) -> Evaluation:
    """A condition whose true accuracy is given.

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


def verdict_on(evaluations: list[Evaluation], resamples: int = 500) -> Verdict:
    (verdict,) = verdicts(differences(evaluations, metrics=["accuracy"], resamples=resamples))
    return verdict


def test_masking_that_beats_the_baseline_and_random_weights_helps():
    verdict = verdict_on(study(baseline=0.70, random_matched=0.70, influence=0.75))
    assert verdict.outcome == "helps"
    assert verdict.baseline.estimate == pytest.approx(0.05, abs=0.02)
    assert verdict.baseline.reference == "baseline"
    assert verdict.control.reference == "random_matched"
    assert verdict.baseline.p_holm < 0.05
    assert verdict.control.p_holm < 0.05
    figure = f"{100 * verdict.baseline.estimate:+.2f} points, 95 % interval {100 * verdict.baseline.low:+.2f} to"
    assert verdict.reason.startswith(f"influence beats both baseline ({figure}")
    assert "but by less" not in verdict.reason


def test_masking_that_is_worse_than_the_baseline_hurts():
    verdict = verdict_on(study(baseline=0.70, random_matched=0.60, influence=0.66))
    assert verdict.outcome == "hurts"
    assert verdict.reason.startswith("influence is worse than baseline (-3.49 points")


def test_masking_that_changes_little_makes_no_difference():
    verdict = verdict_on(study(own=0.02, baseline=0.70, random_matched=0.65, influence=0.70))
    assert verdict.outcome == "no difference"
    assert verdict.reason.startswith("influence differs by less than the margin of 1.00 points from baseline")


def test_a_study_that_is_too_small_cannot_tell():
    verdict = verdict_on(study(rows=200, own=0.5, baseline=0.70, random_matched=0.70, influence=0.72))
    assert verdict.outcome == "cannot tell"
    assert "between influence and baseline" in verdict.reason
    assert f"only differences of {100 * verdict.baseline.smallest_detectable:.1f} points or more" in verdict.reason
    assert verdict.baseline.smallest_detectable > 0.02


def test_masking_that_gains_what_random_weights_gain_makes_no_difference():
    verdict = verdict_on(study(own=0.02, baseline=0.70, random_matched=0.75, influence=0.75))
    assert verdict.outcome == "no difference"
    assert verdict.baseline.p_holm < 0.05
    assert re.match(
        r"influence beats baseline \(.*\), but random_matched \(.*\) by less than the margin", verdict.reason
    )


def test_masking_that_gains_less_than_random_weights_does_not_help():
    assert verdict_on(study(baseline=0.70, random_matched=0.80, influence=0.75)).outcome == "no difference"


def test_masking_that_may_or_may_not_beat_random_weights_cannot_tell():
    verdict = verdict_on(study(rows=400, own=0.3, baseline=0.50, random_matched=0.77, influence=0.79))
    assert verdict.outcome == "cannot tell"
    assert verdict.baseline.p_holm < 0.05
    assert "between influence and random_matched" in verdict.reason


@pytest.mark.parametrize("random_matched", [0.50, 0.95])
def test_masking_that_may_or_may_not_beat_the_baseline_cannot_tell_whatever_random_weights_do(random_matched):
    verdict = verdict_on(study(rows=400, own=0.3, baseline=0.77, random_matched=random_matched, influence=0.79))
    assert verdict.outcome == "cannot tell"
    assert "between influence and baseline" in verdict.reason


def test_a_small_gain_that_is_shown_helps_and_a_small_loss_hurts_and_both_are_called_small():
    gain = verdict_on(study(rows=20_000, own=0.005, baseline=0.700, random_matched=0.700, influence=0.705))
    loss = verdict_on(study(rows=20_000, own=0.005, baseline=0.700, random_matched=0.700, influence=0.695))
    assert (gain.outcome, loss.outcome) == ("helps", "hurts")
    for verdict in (gain, loss):
        assert verdict.reason.endswith("but by less than the margin of 1.00 points.")


def test_with_one_seed_the_verdict_is_on_the_rows_and_says_so():
    arms = {"baseline": 0.70, "random_matched": 0.70, "influence": 0.76}
    verdict = verdict_on(study(seeds=1, **arms))
    assert verdict.outcome == "helps"
    assert verdict.reason.endswith("; with one seed this speaks of other rows, not of other seeds.")
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
    alone = verdicts(differences(gain))
    family = verdicts(differences(gain + unclear))
    assert [verdict.dataset for verdict in family] == ["sst2", "agnews", "dbpedia", "yelp"]
    assert alone[0].baseline.p_value == family[0].baseline.p_value
    assert alone[0].baseline.p_holm < 0.05 < family[0].baseline.p_holm
    assert (alone[0].outcome, family[0].outcome) == ("helps", "cannot tell")


def test_another_masking_arm_has_its_own_family():
    evaluations = study(baseline=0.70, random_matched=0.70, taylor_highest=0.76, influence=0.60)
    family = (("taylor_highest", "baseline"), ("taylor_highest", "random_matched"))
    (verdict,) = verdicts(differences(evaluations, pairs=family), family)
    assert (verdict.arm, verdict.outcome) == ("taylor_highest", "helps")


def test_a_verdict_without_the_control_is_refused():
    with pytest.raises(UsageError, match="on sst2 needs the accuracy of influence minus random_matched"):
        verdict_on(study(baseline=0.70, influence=0.75))
    found = differences(study(baseline=0.70, random_matched=0.70, influence=0.75), metrics=["nll"], resamples=2)
    with pytest.raises(UsageError, match="on sst2 needs the accuracy of influence minus baseline"):
        verdicts(found)


def test_masking_that_does_nothing_is_hardly_ever_said_to_help_or_to_hurt(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels calls it in every correction: a second with torch loaded
    outcomes = [
        verdict_on(study(3, 0.4, 300, draw=draw, baseline=0.7, random_matched=0.7, influence=0.7), 100).outcome
        for draw in range(150)
    ]
    assert outcomes.count("helps") + outcomes.count("hurts") <= 0.05 * len(outcomes)
    assert "cannot tell" in outcomes
