"""Exactly so many samples, of batches of any make."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from influence_masking import MaskingError
from influence_masking.gradients.batches import CalibrationBatch, count_samples, cut, split, take_samples


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclass
class Record:
    x: torch.Tensor
    name: str


X = torch.arange(12).view(6, 2)


def test_the_last_batch_is_cut_to_the_number_asked_for() -> None:
    batches = list(take_samples([X, X, X], 14))
    assert [(b.index, b.size, len(b.data)) for b in batches] == [(0, 6, 6), (1, 6, 6), (2, 2, 2)]
    assert [b.size for b in take_samples([X, X], 12)] == [6, 6]
    assert [b.size for b in take_samples([X, X], None)] == [6, 6]


def test_batches_without_a_sample_are_left_out() -> None:
    assert [(b.index, b.size) for b in take_samples([X[:0], X, X[:0], X], 12)] == [(1, 6), (3, 6)]


def test_no_batch_is_drawn_that_is_not_needed() -> None:
    stream = iter([X, X, X])
    list(take_samples(stream, 12))
    assert len(list(stream)) == 1


@pytest.mark.parametrize("stream", [[], [X]])
def test_a_stream_that_ends_early_is_an_error(stream: list) -> None:
    with pytest.raises(MaskingError, match=f"Too few calibration samples: found {6 * len(stream)}"):
        list(take_samples(stream, 7))


def test_every_sample_of_nothing_is_an_error() -> None:
    with pytest.raises(MaskingError, match="found 0"):
        list(take_samples([], None))


def test_structures_are_cut_as_the_types_that_they_are() -> None:
    batch = {"x": X, "text": list("abcdef"), "pair": Pair(X, X[:, 0]), "scale": torch.tensor(2.0), "kind": "train"}
    part = cut(batch, 2, 4, 6)
    assert torch.equal(part["x"], X[2:4])
    assert part["text"] == ["c", "d"]
    assert isinstance(part["pair"], Pair)
    assert part["pair"].y.tolist() == [4, 6]
    assert part["scale"] == 2
    assert part["kind"] == "train"
    assert torch.equal(cut(Record(X, "n"), 0, 1, 6).x, X[:1])
    assert isinstance(cut([X, X], 0, 1, 6), list)


def test_a_pair_in_a_batch_of_two_is_not_taken_for_two_samples() -> None:
    inputs, labels = cut([X[:2], torch.tensor([1, 2])], 0, 1, 2)
    assert (inputs.shape, labels.tolist()) == ((1, 2), [1])
    mapping, labels = cut(({"x": X[:2]}, torch.tensor([1, 2])), 0, 1, 2)
    assert (mapping["x"].shape, labels.tolist()) == ((1, 2), [1])


def test_a_batch_of_the_hugging_face_tokenizer_is_cut() -> None:
    transformers = pytest.importorskip("transformers")
    part = cut(transformers.BatchEncoding({"input_ids": X}), 0, 2, 6)
    assert isinstance(part, transformers.BatchEncoding)
    assert torch.equal(part["input_ids"], X[:2])


def test_micro_batches_cover_the_batch() -> None:
    pieces = split(CalibrationBatch(X, 3, 6), 4)
    assert [(p.index, p.size) for p in pieces] == [(3, 4), (3, 2)]
    assert torch.equal(torch.cat([p.data for p in pieces]), X)
    assert split(pieces[0], 4) == [pieces[0]]


def test_samples_are_counted_by_the_first_tensor_that_has_a_dimension() -> None:
    assert count_samples({"scale": torch.tensor(1.0), "x": [X]}) == 6
    with pytest.raises(MaskingError, match="no tensor"):
        count_samples({"text": ["a"]})
