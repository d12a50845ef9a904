"""Identities that hold between projections of a Qwen2, whatever its weights: a test without a reference."""

import pytest
import torch

from influence_masking import take_snapshot

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def sums() -> dict[str, float]:
    """Return the sum of theta * grad of each parameter of a two-layer Qwen2 in float64."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=60,
    )
    model = transformers.Qwen2Model(config).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    batches = [torch.randint(0, 60, (5, length)) for length in (7, 11, 4)]

    def loss(module, tokens):
        return module(input_ids=tokens).last_hidden_state[:, -1].pow(2).sum(-1).add(1).log().mul(tokens[:, 0]).mean()

    snapshot = take_snapshot(model, batches, loss, targets=r".*(proj|weight|bias).*", micro_batch_size=2)
    return {name: (p.detach() * snapshot.gradient.grads[name]).sum().item() for name, p in snapshot.candidates.items()}


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["mlp.up_proj.weight"], ["mlp.down_proj.weight"]),
        (["self_attn.v_proj.weight", "self_attn.v_proj.bias"], ["self_attn.o_proj.weight"]),
        (["self_attn.q_proj.weight", "self_attn.q_proj.bias"], ["self_attn.k_proj.weight", "self_attn.k_proj.bias"]),
    ],
)
def test_projections_that_scale_the_same_product_have_equal_sums(sums, layer, one, other) -> None:
    left, right = (sum(sums[f"layers.{layer}.{name}"] for name in names) for names in (one, other))
    assert left != 0
    assert left == pytest.approx(right, rel=1e-10, abs=0)
