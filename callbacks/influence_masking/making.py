"""Make a mask: take the gradient, select the weights, compare processes, measure the effect, and time each step."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from time import perf_counter
from typing import Any

import torch

from influence_masking.errors import MaskingError
from influence_masking.masks.mask import Mask
from influence_masking.options import MaskingOptions
from influence_masking.runtime.processes import Ranks
from influence_masking.snapshot import Snapshot


@dataclass
class Measurement:
    """The effect of zeroing a mask on the mean loss over the calibration data.

    Attributes:
        predicted_change: Change to first order.
        measured_change: Change measured on the same samples.
        loss_before: Mean loss before.
        loss_after: Mean loss with the mask zeroed.
        seconds: Duration of `gradient`, `selection` and `measure`.
    """

    predicted_change: float | None = None
    measured_change: float | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)


MEASUREMENT_FIELDS = tuple(result.name for result in fields(Measurement))


def make_mask(
    take_snapshot: Callable[[], Snapshot], options: MaskingOptions, processes: Ranks
) -> tuple[Mask, Measurement, Snapshot]:
    """Take the gradient, select the weights, and measure the effect of zeroing them.

    Raises:
        MaskingError: If the processes made different masks.
    """
    measurement = Measurement()
    with _timed(measurement.seconds, "gradient"):
        snapshot = take_snapshot()
    with _timed(measurement.seconds, "selection"):
        k = options.num_selected(snapshot.num_candidates)
        mask = snapshot.select(k, options.score, options.tail, options.scope, options.seed, options.matched_score)
        _compare_digests(mask, processes)
    with _timed(measurement.seconds, "measure"):
        measurement.predicted_change = snapshot.predicted_change(mask)
        measurement.loss_before, measurement.loss_after = snapshot.loss, snapshot.measured_loss(mask)
        measurement.measured_change = measurement.loss_after - measurement.loss_before
    return replace(mask, provenance=_provenance(mask, measurement, snapshot, options)), measurement, snapshot


@contextlib.contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = perf_counter()
    yield
    seconds[phase] = perf_counter() - start


def _compare_digests(mask: Mask, processes: Ranks) -> None:
    gathered = processes.gather(torch.tensor(list(bytes.fromhex(mask.digest)), dtype=torch.uint8))
    digests = [bytes(digest.tolist()).hex() for digest in gathered]
    if len(set(digests)) > 1:
        raise MaskingError(
            f"The {processes.count} processes made different masks: {[d[:12] for d in digests]}. Check that every "
            "process has the same weights and that `calibration_batches` yields the same batches."
        )


def _provenance(mask: Mask, measurement: Measurement, snapshot: Snapshot, options: MaskingOptions) -> dict[str, Any]:
    return options.as_record() | {
        "module": type(snapshot.module).__qualname__,
        "num_samples": snapshot.gradient.num_samples,
        "num_masked": mask.num_masked,
        "num_candidates": mask.num_candidates,
        "predicted_change": measurement.predicted_change,
        "measured_change": measurement.measured_change,
    }
