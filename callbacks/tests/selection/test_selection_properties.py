"""What is true of the selection for all inputs."""

import pytest
import torch

from influence_masking import SCORES
from influence_masking.masks import bits
from influence_masking.selection.lowest import PIECE_SIZE, Weights, select, split_in_proportion

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

# few distinct values, so that ties are the rule; zeros of both signs and subnormals among them
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -1e-45, 1e-39, 3e38, -3e38, 0.1, 0.10000000149])
TENSORS = st.lists(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=60), min_size=1, max_size=4)
settings = hypothesis.settings(max_examples=150, deadline=None)


@settings
@hypothesis.given(
    TENSORS,
    st.sampled_from(["sign_gradient", "gradient", "magnitude"]),
    st.sampled_from(["lowest", "highest"]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    st.floats(0, 1),
)
def test_selection_is_the_head_of_a_stable_sort(tensors, score, tail, dtype, share) -> None:
    parts, position = [], 0
    for i, pairs in enumerate(tensors):
        theta, grad = torch.tensor(pairs, dtype=torch.float32).unbind(1)
        parts.append(Weights(str(i), theta.to(dtype), grad.clone(), position))
        position += len(pairs)
    k = round(share * position)
    scores = [(SCORES[score](p.theta.float(), p.grad) * (1 if tail == "lowest" else -1)).tolist() for p in parts]
    order = sorted((value, i, j) for i, column in enumerate(scores) for j, value in enumerate(column))
    expected = {(i, j) for _, i, j in order[:k]}

    selected = select(parts, k, SCORES[score], tail)

    found = {(i, j) for i, p in enumerate(parts) for j in bits.unpack(selected[i], len(p)).nonzero().view(-1).tolist()}
    assert found == expected


@settings
@hypothesis.given(st.lists(st.booleans(), max_size=100))
def test_packing_and_unpacking_give_the_flags_back(flags) -> None:
    tensor = torch.tensor(flags, dtype=torch.bool)
    packed = bits.pack(tensor)
    assert len(packed) == -(-len(flags) // 8)
    assert bits.unpack(packed, len(flags)).tolist() == flags
    assert bits.count_ones(packed) == sum(flags)


@settings
@hypothesis.given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20), st.floats(0, 1))
def test_shares_add_up_and_are_within_one_of_proportional(sizes, fraction) -> None:
    k = int(fraction * sum(sizes))
    shares = split_in_proportion(k, sizes)
    assert sum(shares) == k
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    assert all(
        abs(share * sum(sizes) - k * size) < max(sum(sizes), 1) for share, size in zip(shares, sizes, strict=True)
    )


def test_pieces_end_on_whole_bytes() -> None:
    assert all(size % 8 == 0 for size in PIECE_SIZE.values())
