"""Many masks from one gradient."""

import pytest
import torch
from models import Classifier, dataset, loader, quiet_trainer, weights_of
from test_gradients import cross_entropy, snapshot_of
from torch.utils.data import DataLoader, RandomSampler

from influence_masking import InfluenceMasking, MaskingError, path_scan, stability, sweep, take_snapshot


def test_each_point_of_a_sweep_is_what_the_callback_finds() -> None:
    module = Classifier()
    before = weights_of(module)
    points = list(sweep(snapshot_of(module), [1e-6, 0.1, 0.3], scores=["sign_gradient", "taylor"]))
    assert [(p.score, p.tail, p.fraction, p.num_masked) for p in points] == [
        (score, tail, fraction, k)
        for score in ("sign_gradient", "taylor")
        for tail in ("lowest", "highest")
        for fraction, k in ((0.1, 64), (0.3, 192))
    ]
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())
    callback = InfluenceMasking(0.3, "taylor", "highest", targets=["0", "3"], num_samples=90)
    quiet_trainer(callback, max_epochs=0).fit(module, loader(90))
    assert points[-1].digest == callback.mask.digest
    assert points[-1].predicted_change == pytest.approx(callback.predicted_change, rel=1e-6)
    assert points[-1].measured_change == pytest.approx(callback.measured_change, abs=1e-6)


def test_theory_and_measurement_part_as_the_mask_grows() -> None:
    points = list(sweep(snapshot_of(Classifier().double()), [0.002, 0.5], tails=["highest"]))
    small, large = (abs(p.measured_change / p.predicted_change - 1) for p in points)
    assert small < 0.05
    assert large > 0.3


def test_a_path_begins_at_zero_with_the_predicted_slope_and_ends_at_the_measured_change() -> None:
    snapshot = snapshot_of(Classifier().double())
    mask = snapshot.select(200)
    points = path_scan(snapshot, mask, [0.0, 0.001, 1.0])
    assert points[0].measured_change == 0
    assert points[1].measured_change == pytest.approx(points[1].predicted_change, rel=0.01)
    assert points[2].predicted_change == snapshot.predicted_change(mask)
    assert points[2].measured_change == snapshot.measured_change(mask)


def test_stability_tells_a_score_from_chance() -> None:
    module = Classifier()

    def subset(seed: int):
        sampler = RandomSampler(dataset(), num_samples=60, generator=torch.Generator().manual_seed(seed))
        return take_snapshot(module, DataLoader(dataset(), 60, sampler=sampler), cross_entropy, targets=["0", "3"])

    magnitude = stability(subset, [0, 1, 2], lambda s: s.select(64, "magnitude"))
    gradient = stability(subset, [0, 1, 2], lambda s: s.select(64, "sign_gradient"))
    chance = stability(lambda seed: (seed, subset(seed)), range(3), lambda s: s[1].select(64, "random", seed=s[0]))
    assert (magnitude.jaccard, magnitude.lowest_jaccard) == (1, 1)
    assert chance.jaccard < 0.12
    assert chance.chance == pytest.approx(6.4 / 121.6)
    assert 0.2 < gradient.lowest_jaccard <= gradient.jaccard < 1


def test_stability_needs_a_pair() -> None:
    with pytest.raises(MaskingError, match="two seeds"):
        stability(lambda seed: None, [0], lambda snapshot: None)


def test_a_sweep_within_a_fit_has_the_gradient_of_the_callback() -> None:
    class Sweeping(InfluenceMasking):
        def snapshot(self, trainer, module):
            snapshot = super().snapshot(trainer, module)
            self.points = list(sweep(snapshot, [0.1]))
            return snapshot

    callback = Sweeping(0.1, targets=["0", "3"], num_samples=90)
    quiet_trainer(callback, max_epochs=0).fit(Classifier(), loader())
    assert callback.points[0].digest == callback.mask.digest
    assert callback.points[0].measured_change == callback.measured_change
