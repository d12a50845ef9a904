"""Which parameters may be masked."""

import pytest
import torch
from torch import nn

from influence_masking import MaskingError, find_candidates
from influence_masking.masks.names import layer_of, projection_of


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(4, 4)
        self.o_proj = nn.Linear(4, 4, bias=False)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"self_attn": Attention(), "norm": nn.LayerNorm(4)}) for _ in range(2)
        )
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


def test_default_targets_are_the_matrices_of_the_projections() -> None:
    assert list(find_candidates(Model())) == [
        "layers.0.self_attn.q_proj.weight",
        "layers.0.self_attn.o_proj.weight",
        "layers.1.self_attn.q_proj.weight",
        "layers.1.self_attn.o_proj.weight",
    ]


def test_suffixes_match_whole_components_and_biases_only_when_asked_for() -> None:
    assert list(find_candidates(Model(), ["1.self_attn.q_proj"])) == ["layers.1.self_attn.q_proj.weight"]
    assert list(find_candidates(Model(), ["q_proj.bias"])) == [f"layers.{i}.self_attn.q_proj.bias" for i in range(2)]
    with pytest.raises(MaskingError, match="proj"):
        find_candidates(Model(), ["proj"])


def test_a_string_is_a_regular_expression_of_the_whole_name() -> None:
    assert list(find_candidates(Model(), r"layers\.\d+\.norm\.(weight|bias)")) == [
        f"layers.{i}.norm.{name}" for i in range(2) for name in ("weight", "bias")
    ]
    with pytest.raises(MaskingError, match="regular expression"):
        find_candidates(Model(), "layers(")


def test_a_tied_parameter_is_found_by_any_of_its_names_and_counted_once() -> None:
    assert list(find_candidates(Model(), ["head"])) == ["embed.weight"]
    assert list(find_candidates(Model(), ["head", "embed"])) == ["embed.weight"]


def test_frozen_parameters_are_candidates() -> None:
    assert len(find_candidates(Model().requires_grad_(False))) == 4


def test_a_target_that_matches_nothing_is_an_error_with_near_misses() -> None:
    with pytest.raises(MaskingError, match=r"k_proj.*near misses: \['layers.0.self_attn.q_proj.weight'"):
        find_candidates(Model(), ["q_proj", "k_proj"])
    with pytest.raises(MaskingError, match=r"default targets.*its weight matrices: \['0.weight'\]"):
        find_candidates(nn.Sequential(nn.Linear(2, 2)))


def test_no_target_at_all_is_an_error() -> None:
    with pytest.raises(MaskingError, match=r"targets=\[\] matches no parameter"):
        find_candidates(Model(), [])


def test_quantized_weights_are_an_error() -> None:
    module = nn.Module()
    module.q_proj = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(MaskingError, match=r"q_proj.*torch.uint8"):
        find_candidates(module, ["q_proj"])


def test_compiled_submodules_keep_the_names_of_the_plain_ones() -> None:
    model = Model()
    model.layers[0] = torch.compile(model.layers[0], backend="eager")
    assert list(find_candidates(model)) == list(find_candidates(Model()))


def test_peft_wrapped_projections_are_found_without_their_adapters() -> None:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(Model(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert list(find_candidates(wrapped, ["q_proj"])) == [
        f"base_model.model.layers.{i}.self_attn.q_proj.base_layer.weight" for i in range(2)
    ]


@pytest.mark.parametrize(
    ("config", "projections"),
    [
        ("BertConfig", 6),
        ("GPT2Config", 4),
        ("Qwen2Config", 7),
        ("DistilBertConfig", 6),
        ("LlamaConfig", 7),
        ("ViTConfig", 6),
    ],
)
def test_default_targets_cover_the_attention_and_mlp_matrices_of(config: str, projections: int) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 50,
    }
    if config == "DistilBertConfig":
        sizes = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "vocab_size": 50}
    if config == "GPT2Config":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50}
    if config == "ViTConfig":
        sizes.pop("vocab_size")
    model = transformers.AutoModel.from_config(getattr(transformers, config)(**sizes))
    assert len(find_candidates(model)) == 2 * projections


@pytest.mark.parametrize(
    ("name", "layer", "projection"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "model.layers.3", "self_attn.q_proj"),
        ("net.0.weight", "net.0", "weight"),
        ("0.weight", "0", "weight"),
        ("head.weight", "head", "weight"),
        ("h.11.attn.c_attn.base_layer.weight", "h.11", "attn.c_attn"),
        ("in_proj_weight", "", "in_proj_weight"),
        ("layers.0.self_attn.in_proj_weight", "layers.0", "self_attn.in_proj_weight"),
    ],
)
def test_layer_and_projection_are_read_from_the_name(name: str, layer: str, projection: str) -> None:
    assert (layer_of(name), projection_of(name)) == (layer, projection)
