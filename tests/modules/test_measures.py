import torch
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
)

from modules.measures import Measures

GENERATOR = torch.Generator().manual_seed(0)


def batches(*sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    def draw(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return 3 * torch.randn(size, 5, generator=GENERATOR), torch.randint(5, (size,), generator=GENERATOR)

    return [draw(size) for size in sizes]


def measured(some: list[tuple[torch.Tensor, torch.Tensor]], measures: Measures) -> dict[str, torch.Tensor]:
    measures.begin(torch.device("cpu"))
    for logits, labels in some:
        measures.update(logits, labels)
    return measures.compute()


def test_measures_are_those_of_torchmetrics_and_the_loss_is_added_batch_by_batch():
    some = batches(64, 64, 64, 13)
    logits, labels = (torch.cat(parts) for parts in zip(*some, strict=True))
    mean = MeanMetric()
    for batch in some:
        mean.update(cross_entropy(*batch, reduction="none"))
    assert measured(some, Measures(5)) == {
        "accuracy": multiclass_accuracy(logits, labels, 5, average="micro"),
        "macro_f1": multiclass_f1_score(logits, labels, 5, average="macro"),
        "ece": multiclass_calibration_error(logits.softmax(-1), labels, 5, n_bins=15),
        "nll": mean.compute(),
    }


def test_places_without_a_row_and_earlier_epochs_count_nowhere():
    some, measures = batches(8, 8), Measures(5)
    alone = measured(some, measures)
    measured(batches(20), measures)
    filled = [(torch.cat([logits, logits]), torch.cat([labels, torch.full((8,), -100)])) for logits, labels in some]
    assert measured(filled, measures) == alone
