"""What the loggers get."""

import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from models import Classifier, loader, quiet_trainer

from influence_masking import InfluenceMasking, Share
from influence_masking.reporting import BINS, CELL, histogram_of, picture_of


def masking() -> InfluenceMasking:
    return InfluenceMasking(0.1, targets=["0", "3"], num_samples=90, action="freeze")


def test_every_logger_gets_the_numbers(tmp_path: Path) -> None:
    callback = masking()
    trainer = quiet_trainer(callback, logger=CSVLogger(tmp_path), log_every_n_steps=2)
    trainer.fit(Classifier(), loader())
    with (Path(trainer.logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}
    assert logged["masking/predicted_change"] == [pytest.approx(callback.predicted_change)]
    assert logged["masking/measured_change"] == [pytest.approx(callback.measured_change)]
    assert logged["masking/masked"] == [64]
    assert logged["masking/share/net.0/weight"] == [callback.mask.counts["net.0.weight"] / 512]
    assert len(logged["masking/held_gradient_norm"]) == 7
    assert set(logged["masking/held_gradient_norm"]) == {0.0}


def test_tensorboard_also_gets_a_picture_and_a_histogram(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    quiet_trainer(masking(), logger=logger, max_epochs=0).fit(Classifier(), loader())
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir).Reload()
    assert events.Tags()["images"] == ["masking/share"]
    image = events.Images("masking/share")[0]
    assert (image.height, image.width) == (2 * CELL, CELL)
    histogram = events.Histograms("masking/scores")[0].histogram_value
    assert sum(histogram.bucket) == histogram.num


def test_the_picture_is_darkest_at_the_largest_share_and_grey_where_there_is_nothing() -> None:
    shares = [Share("l.0", "q", 0, 10), Share("l.0", "k", 5, 10), Share("l.1", "q", 2, 10)]
    image = picture_of(shares)
    assert image.shape == (3, 2 * CELL, 2 * CELL)
    assert image[:, 0, 0].tolist() == [1, 1, 1]
    assert image[:, 0, -1].tolist() == pytest.approx([0.03, 0.19, 0.42])
    assert image[0, -1, 0].item() == pytest.approx(1 - 0.4 * 0.97)
    assert image[:, -1, -1].tolist() == pytest.approx([0.85] * 3)
    assert picture_of([Share("l.0", "q", 0, 10)]).eq(1).all()


def test_the_histogram_counts_every_score_once() -> None:
    scores = torch.cat([torch.randn(10_000), torch.tensor([1e6, -1e6])])
    histogram = histogram_of(scores)
    assert sum(histogram["bucket_counts"]) == histogram["num"] == 10_002
    assert len(histogram["bucket_limits"]) == len(histogram["bucket_counts"]) == BINS
    assert histogram["max"] == 1e6
    assert max(histogram["bucket_limits"]) < 10
    assert sum(histogram_of(torch.zeros(50))["bucket_counts"]) == 50
