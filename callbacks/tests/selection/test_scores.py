"""The scores, worked by hand on three weights, and how they are found by name."""

import pytest
import torch

from influence_masking import SCORES, MaskingError
from influence_masking.selection.scores import random, resolve_score

THETA = torch.tensor([2.0, -3.0, 0.0])
GRAD = torch.tensor([-0.5, -1.0, 4.0])


def double_taylor(theta: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    return 2 * theta * grad


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sign_gradient", [-0.5, 1.0, 0.0]),
        ("taylor", [-1.0, 3.0, 0.0]),
        ("snip", [1.0, 3.0, 0.0]),
        ("gradient", [0.5, 1.0, 4.0]),
        ("magnitude", [2.0, 3.0, 0.0]),
    ],
)
def test_score_of_three_weights_worked_by_hand(name: str, expected: list[float]) -> None:
    theta, grad = THETA.clone(), GRAD.clone()
    assert SCORES[name](theta, grad).tolist() == expected
    assert torch.equal(theta, THETA)
    assert torch.equal(grad, GRAD)


def test_sign_gradient_is_the_gradient_with_respect_to_the_magnitude() -> None:
    magnitude, sign = torch.tensor([2.0, 3.0], requires_grad=True), torch.tensor([1.0, -1.0])
    inputs = torch.tensor([1.0, -2.0])
    ((magnitude * sign * inputs).sum() ** 2).backward()
    theta = (magnitude * sign).detach().requires_grad_()
    ((theta * inputs).sum() ** 2).backward()
    assert SCORES["sign_gradient"](theta.detach(), theta.grad).tolist() == magnitude.grad.tolist()


def test_random_scores_depend_on_position_and_seed_alone() -> None:
    position = torch.arange(100_000)
    scores = random(position, position, position=position, seed=3)
    again = random(position[50:60].float(), position, position=position[50:60], seed=3)
    assert torch.equal(scores[50:60], again)
    assert not torch.equal(scores, random(position, position, position=position, seed=4))
    assert scores.min() >= 0
    assert scores.max() < 1
    assert scores.mean().item() == pytest.approx(0.5, abs=0.005)
    assert scores.var().item() == pytest.approx(1 / 12, abs=0.001)
    assert torch.corrcoef(torch.stack([scores[:-1], scores[1:]]))[0, 1].item() == pytest.approx(0, abs=0.01)


def test_random_scores_are_these_on_every_machine() -> None:
    # splitmix64 in Python's own integers
    def splitmix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    position = torch.tensor([0, 1, 2, 357_826_559])
    expected = [(splitmix((p + splitmix(7)) % 2**64) >> 40) / 2**24 for p in position.tolist()]
    assert random(position, position, position=position, seed=7).tolist() == expected


def test_a_function_is_found_by_its_path_and_taken_as_it_is() -> None:
    assert resolve_score(f"{__name__}.double_taylor")(THETA, GRAD).tolist() == [-2.0, 6.0, 0.0]
    assert resolve_score(double_taylor) is double_taylor


@pytest.mark.parametrize("score", ["sign_gradeint", "no.such.module.score", "influence_masking.scores.no_such"])
def test_an_unknown_score_is_an_error_that_names_it(score: str) -> None:
    with pytest.raises(MaskingError, match=score):
        resolve_score(score)
