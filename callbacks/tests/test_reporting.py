"""What the loggers get."""

import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from models import Classifier, loader, quiet_trainer

from influence_masking import InfluenceMasking, Share
from influence_masking.reporting import CELL_SIZE, COLOR_SCALE, GAP, MISSING_COLOR, NUM_BINS, histogram_of, picture_of


def masking() -> InfluenceMasking:
    return InfluenceMasking(0.1, targets=["0", "3"], num_samples=90, action="freeze")


def logged_by(trainer: Trainer) -> dict[str, list[float]]:
    with (Path(trainer.logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def test_every_logger_gets_the_numbers(tmp_path: Path) -> None:
    callback = masking()
    trainer = quiet_trainer(callback, logger=CSVLogger(tmp_path), log_every_n_steps=2)
    trainer.fit(Classifier(), loader())
    logged = logged_by(trainer)
    assert logged["masking/predicted_change"] == [pytest.approx(callback.predicted_change)]
    assert logged["masking/measured_change"] == [pytest.approx(callback.measured_change)]
    assert logged["masking/masked"] == [64]
    assert logged["masking/share/net.0/weight"] == [callback.mask.counts["net.0.weight"] / 512]
    assert len(logged["masking/held_gradient_norm"]) == 7
    assert set(logged["masking/held_gradient_norm"]) == {0.0}


def test_several_callbacks_log_under_tags_of_their_own(tmp_path: Path) -> None:
    callbacks = [
        InfluenceMasking(share, targets=[target], num_samples=90) for share, target in ((0.1, "0"), (0.5, "3"))
    ]
    trainer = quiet_trainer(*callbacks, logger=CSVLogger(tmp_path), log_every_n_steps=1, max_epochs=1)
    trainer.fit(Classifier(), loader())
    logged = logged_by(trainer)
    for i, (callback, name) in enumerate(zip(callbacks, ("net.0", "net.3"), strict=True)):
        tags = {tag.removeprefix(f"masking_{i}/") for tag in logged if tag.startswith(f"masking_{i}/")}
        assert logged[f"masking_{i}/masked"] == [callback.num_masked]
        assert logged[f"masking_{i}/predicted_change"] == [pytest.approx(callback.predicted_change)]
        assert f"share/{name}/weight" in tags
        assert len([tag for tag in tags if tag.startswith("share/")]) == 1
        assert logged[f"masking_{i}/held_gradient_norm"] == [0] * 7
    assert not [tag for tag in logged if tag.startswith("masking/")]


def test_a_candidate_without_a_weight_has_a_share_of_nothing(tmp_path: Path) -> None:
    class WithEmpty(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.empty = torch.nn.Linear(0, 4)

    callback = InfluenceMasking(0.1, targets=["0", "3", "empty"], num_samples=90, score="random_matched")
    trainer = quiet_trainer(callback, logger=CSVLogger(tmp_path))
    trainer.fit(WithEmpty(), loader())
    assert (callback.num_masked, callback.num_candidates) == (64, 640)
    assert logged_by(trainer)["masking/share/empty/weight"] == [0]


def test_tensorboard_also_gets_a_picture_and_a_histogram(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger, callback = TensorBoardLogger(tmp_path), masking()
    quiet_trainer(callback, logger=logger, max_epochs=0).fit(Classifier(), loader())
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir).Reload()
    assert events.Tags()["images"] == ["masking/share"]
    image = events.Images("masking/share")[0]
    assert (3, image.height, image.width) == tuple(picture_of(callback.mask.summary()).shape)
    histogram = events.Histograms("masking/scores")[0].histogram_value
    assert sum(histogram.bucket) == histogram.num


def test_the_picture_is_darkest_at_the_largest_share_and_gray_where_there_is_nothing() -> None:
    pytest.importorskip("PIL")
    shares = [Share("l.0", "q", 0, 10), Share("l.0", "k", 5, 10), Share("l.1", "q", 2, 10)]
    image = picture_of(shares)
    cells = image[:, -2 * CELL_SIZE[1] - GAP : -GAP, -2 * CELL_SIZE[0] - GAP : -GAP]

    def corner(row: int, column: int) -> tuple[int, ...]:
        return tuple(cells[:, row * CELL_SIZE[1], column * CELL_SIZE[0]].tolist())

    assert (corner(0, 0), corner(0, 1), corner(1, 1)) == ((255, 255, 255), COLOR_SCALE[1], MISSING_COLOR)
    assert corner(1, 0) == tuple(round(255 + 0.4 * (dark - 255)) for dark in COLOR_SCALE[1])
    labels = image[:, :, : image.shape[2] - 2 * CELL_SIZE[0] - GAP]
    assert labels.min() == 0  # there is text beside the cells, and in each of them
    assert cells[:, : CELL_SIZE[1], : CELL_SIZE[0]].min() == 0
    assert cells[:, : CELL_SIZE[1], CELL_SIZE[0] :].max() == 255


def test_a_picture_of_nothing_masked_is_white() -> None:
    pytest.importorskip("PIL")
    image = picture_of([Share("l.0", "q", 0, 10), Share("l.0", "empty", 0, 0)])
    assert image[:, -CELL_SIZE[1] - GAP, -2 * CELL_SIZE[0] - GAP : -GAP].eq(255).all()


def test_the_histogram_counts_every_score_once() -> None:
    scores = torch.cat([torch.randn(10_000), torch.tensor([1e6, -1e6])])
    histogram = histogram_of(scores)
    assert sum(histogram["bucket_counts"]) == histogram["num"] == 10_002
    assert len(histogram["bucket_limits"]) == len(histogram["bucket_counts"]) == NUM_BINS
    assert histogram["max"] == 1e6
    assert max(histogram["bucket_limits"]) < 10
    assert sum(histogram_of(torch.zeros(50))["bucket_counts"]) == 50
