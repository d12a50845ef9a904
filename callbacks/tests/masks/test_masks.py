"""Masks: what they hold, how they combine, and which models they fit."""

import hashlib
from pathlib import Path

import pytest
import torch
from models import Classifier

from influence_masking import Mask, MaskingError

A = torch.tensor([[1, 1, 0], [0, 0, 1]]) == 1
B = torch.tensor([[1, 0, 0], [0, 1, 1]]) == 1


def mask_of(flags: torch.Tensor, name: str = "layers.0.q_proj.weight", **others: torch.Tensor) -> Mask:
    return Mask.from_flags({name: flags} | others)


def test_counts_and_flags_are_those_it_was_made_of() -> None:
    mask = mask_of(A, bias=torch.tensor([True]))
    assert (mask.num_masked, mask.num_candidates, mask.fraction) == (4, 7, 4 / 7)
    assert mask.counts == {"layers.0.q_proj.weight": 3, "bias": 1}
    assert torch.equal(mask.flags("layers.0.q_proj.weight"), A)
    assert mask.packed["layers.0.q_proj.weight"].tolist() == [0b11000100]


def test_digest_is_over_names_shapes_and_bits_and_not_over_order_or_provenance() -> None:
    mask = mask_of(A)
    assert mask.digest == hashlib.sha256(b'["layers.0.q_proj.weight", [2, 3]]\xc4').hexdigest()
    others = [mask_of(B), mask_of(A, name="x"), mask_of(A.view(3, 2))]
    assert len({mask.digest, *(other.digest for other in others)}) == 4
    assert Mask.from_flags({"a": A, "b": B}, note=1).digest == Mask.from_flags({"b": B, "a": A}).digest
    assert mask == mask_of(A)
    assert hash(mask) == hash(mask_of(A))


def test_union_intersection_and_difference_are_those_of_sets() -> None:
    one, other = mask_of(A), mask_of(B)
    name = "layers.0.q_proj.weight"
    assert torch.equal((one | other).flags(name), A | B)
    assert torch.equal((one & other).flags(name), A & B)
    assert torch.equal((one - other).flags(name), A & ~B)
    assert torch.equal(one.union(other).flags(name), A | B)


def test_overlap_is_given_beside_chance() -> None:
    overlap = mask_of(A).overlap(mask_of(B))
    assert (overlap.intersection, overlap.union, overlap.jaccard) == (2, 4, 0.5)
    assert overlap.chance == pytest.approx(1.5 / 4.5)
    assert mask_of(A & ~A).overlap(mask_of(A & ~A)).jaccard == 1.0


def test_chance_is_what_random_masks_have() -> None:
    masks = [Mask.from_flags({"w": torch.rand(100_000) < share}) for share in (0.2, 0.3)]
    assert masks[0].overlap(masks[1]).jaccard == pytest.approx(masks[0].overlap(masks[1]).chance, rel=0.02)


def test_masks_over_other_candidates_do_not_combine() -> None:
    with pytest.raises(MaskingError, match=r"bias has shape None in one and \(1,\)"):
        mask_of(A) | mask_of(A, bias=torch.tensor([True]))


def test_a_saved_mask_is_loaded_with_its_provenance(tmp_path: Path) -> None:
    mask = Mask.from_flags({"w": A, "none": torch.zeros(0) > 0}, score="snip")
    mask.save(tmp_path / "folder" / "mask.safetensors", revision="abc", folder=tmp_path)
    loaded = Mask.load(tmp_path / "folder" / "mask.safetensors")
    assert loaded == mask
    assert loaded.shapes == mask.shapes
    assert loaded.provenance == {"score": "snip", "revision": "abc", "folder": str(tmp_path)}
    assert mask.provenance == {"score": "snip"}


def test_state_goes_through_a_checkpoint_that_loads_nothing_but_tensors(tmp_path: Path) -> None:
    mask = mask_of(A)
    torch.save(mask.state_dict(), tmp_path / "state")
    assert Mask.from_state_dict(torch.load(tmp_path / "state", weights_only=True)) == mask


def test_summary_is_by_layer_and_projection() -> None:
    mask = Mask.from_flags({"l.0.q.weight": A, "l.0.q.bias": A[0], "l.1.q.weight": B, "head.weight": B})
    assert [tuple(share) for share in mask.summary()] == [
        ("l.0", "q", 3, 6),
        ("l.0", "q.bias", 2, 3),
        ("l.1", "q", 3, 6),
        ("head", "weight", 3, 6),
    ]


def test_applying_sets_the_selected_weights_to_zero_and_no_others() -> None:
    module = Classifier()
    flags = torch.rand(32, 16) < 0.3
    expected = module.net[0].weight.detach().masked_fill(flags, 0)
    Mask.from_flags({"net.0.weight": flags}).apply(module)
    assert torch.equal(module.net[0].weight, expected)


def test_applying_follows_other_memory_layouts() -> None:
    module = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    flags = torch.rand(4, 3, 3, 3) < 0.5
    Mask.from_flags({"weight": flags}).apply(module)
    assert torch.equal(module.weight == 0, flags)


def test_another_model_is_an_error_that_names_the_first_parameter_that_differs() -> None:
    mask = Mask.from_flags({"net.0.weight": torch.zeros(32, 16) > 0, "net.3.weight": torch.zeros(4, 32) > 0})
    with pytest.raises(MaskingError, match=r"net\.0\.weight of shape \(32, 16\), Classifier has shape \(8, 16\)"):
        mask.apply(Classifier(width=8))
    with pytest.raises(MaskingError, match=r"net\.0\.weight.*Linear has no such parameter"):
        mask.check(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    "packed", [torch.zeros(2, dtype=torch.uint8), torch.zeros(1), torch.tensor([1], dtype=torch.uint8), None]
)
def test_bits_that_do_not_fit_the_shape_are_an_error(packed: torch.Tensor | None) -> None:
    with pytest.raises(MaskingError, match="damaged"):
        Mask({"w": (2, 3)}, {"w": packed} if packed is not None else {})
