"""Every architecture of the installed transformers, small, and what the study makes of it.

    python tests/modules/architectures.py

writes the list into docs/backbones.md. The tests go through the same architectures one by one.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from modules import BackboneError, Baseline, Classifier, Influence, LoRA
from modules.backbone import prepared
from modules.families import FAMILIES, input_fault

ARCHITECTURES = sorted({*MODEL_MAPPING_NAMES, *MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES})
DOC = Path(__file__).parents[2] / "docs" / "backbones.md"
BEGIN, END = "<!-- list: begin -->", "<!-- list: end -->"
LARGEST = 6_000_000
"""Weights of the largest model that is built."""

SIZES = {
    r"hidden_size|d_model|n_embd|hidden_dim|model_dim|dim|emb_dim|embedding_size|embed_dim|embedding_dim|width": 32,
    r"word_embed_proj_dim|d_embed|attention_hidden_size|embedding_hidden_size|input_embedding_size": 32,
    r".*vocab_size.*|num_embeddings": 96,
    r"num_hidden_layers|n_layers?|num_layers|((num_)?(en|de)coder_)?layers|num_(en|de)coder_layers|depth": 2,
    r"num_attention_heads|n_heads?|num_heads|((num_)?(en|de)coder_)?attention_heads|encoder_heads": 4,
    r"head_dim|d_kv|dim_head|attention_head_size|v_head_dim|d_head|qk_nope_head_dim|qk_rope_head_dim|rotary_dim": 8,
    r"global_head_dim|linear_(key_|value_)?head_dim|mamba_head_dim|mamba_d_head|ssm_state_size|mamba_d_state": 8,
    r"qk_head_dim|q_lora_rank|kv_lora_rank|o_lora_rank|lora_rank|index_head_dim|mamba_d_ssm|time_step_rank": 16,
    r".*intermediate_size.*|.*ffn_dim|d_ff|d_inner|n_inner|.*ffn_hidden_size|ffn_embed_dim": 48,
    r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts": 4,
    r"num_experts_per_tok|moe_topk|moe_top_k|top_k_experts|moe_k|num_experts_per_token|n_group|topk_group": 2,
    r"max_position_embeddings|n_positions|n_ctx|max_(target|source)_positions|max_seq_len(gth)?|seq_length": 128,
    r"sliding_window|local_attention|attention_chunk_size|(mamba_)?chunk_size|linear_num_(key_|value_)?heads": 4,
}
KEY_VALUE_HEADS = "num_key_value_heads|n_kv_heads?|num_kv_heads"
TOKENS = r"(pad|bos|eos|sep|cls|mask|unk|decoder_start|image|video|audio|forced_.*)_token_(id|index)"
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
SECTIONS = {"rope_parameters": ROPE | {"mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}}
HEAD_DIM = {"head_dim": 8}
MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_ssm": 64}
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("bamba", "granitemoehybrid", "falcon_h1"), MAMBA_2),
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text"), SECTIONS),
    **dict.fromkeys(("glm4v_text", "glm4v_moe_text", "glm_image_text", "glm_ocr_text"), SECTIONS),
    **dict.fromkeys(("cosmos3_edge_text", "hy_v4_vl_text"), SECTIONS),
    **dict.fromkeys(("ministral", "hunyuan_v1_dense", "hunyuan_v1_moe"), HEAD_DIM),
    "bailing_hybrid": {"n_group": 2, "topk_group": 1},
    "chameleon": {
        "vq_config": {"resolution": 16, "base_channels": 32, "channel_multiplier": [1], "latent_channels": 32},
        "vocabulary_map": {"<image>": 3},
    },
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), ROPE)},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10_000.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "rope_parameters": ROPE},
    "dots1": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "esm": {"vocab_size": 96, "position_embedding_type": "rotary"},
    "esmc": {"vocab_size": 96},
    "funnel": {"architectures": ["FunnelModel"], "block_sizes": [1, 1], "block_repeats": [1, 1]},
    "gemma3n_text": {"num_kv_shared_layers": 0, "intermediate_size": 48, "activation_sparsity_pattern": None},
    "hunyuan_vl_text": {"head_dim": 8, "rope_parameters": ROPE | {"xdrope_section": [1, 1, 1, 1]}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 48},
    "longcat_flash": {"zero_expert_num": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "mistral4": {"rope_parameters": ROPE | {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64}},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16]},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
}
"""What a configuration needs beside smaller sizes to be consistent."""


class NotBuiltError(Exception):
    """An architecture does not build at two layers from its configuration class."""


def shrunk(config: PretrainedConfig) -> dict[str, Any]:
    """Return the fields of a configuration that must change for a model of two narrow layers."""
    small: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        part = vars(config).get(name)
        if isinstance(part, PretrainedConfig):
            small[name] = shrunk(part) | {"model_type": part.model_type}
        elif name == "pad_token_id":
            small[name] = 0
        elif re.fullmatch(TOKENS, name):
            small[name] = 3 if isinstance(value, int) and value >= 90 else value
        elif re.fullmatch(KEY_VALUE_HEADS, name) and isinstance(value, int):
            small[name] = 4 if value == vars(config).get("num_attention_heads") else min(2, value)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
            sizes = [size for pattern, size in SIZES.items() if re.fullmatch(pattern, name)]
            small |= {name: min(value, *sizes)} if sizes else {}
        elif isinstance(value, list) and name.endswith(("layer_types", "layers_block_type")):
            small[name] = (list(dict.fromkeys(value)) * 2)[:2]
    return small


def model_class(model_type: str) -> Any:
    """Return the class that `AutoModel` has for an architecture."""
    try:
        found = AutoModel._model_mapping[CONFIG_MAPPING[model_type]]
        found = found[0] if isinstance(found, tuple) else found
        found.main_input_name  # noqa: B018  a stand-in of transformers raises here that a package is missing
    except (ImportError, ValueError) as error:
        raise NotBuiltError(first_line(error)) from error
    return found


def build(model_type: str, **options: Any) -> PreTrainedModel:
    """Return the architecture with two narrow layers of random weights, as `load_backbone` would return it.

    Args:
        model_type: One of `ARCHITECTURES`.
        options: Further fields of its configuration.

    Raises:
        NotBuiltError: If it does not build so.
        BackboneError: If its class or its configuration alone show that it does not read texts.
    """
    of_class = model_class(model_type)
    if of_class.main_input_name != "input_ids":
        raise BackboneError(f"{model_type}: {input_fault(of_class)}")
    try:
        config_class = CONFIG_MAPPING[model_type]
        config = config_class(**shrunk(config_class()) | OVERRIDES.get(model_type, {}) | options)
        if fault := input_fault(SimpleNamespace(main_input_name="input_ids", config=config)):
            raise BackboneError(f"{model_type}: {fault}")
        with torch.device("meta"):
            weights = sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())
        if weights > LARGEST:
            raise NotBuiltError(f"parts that its sizes do not reach have {weights:,} weights")
        torch.manual_seed(0)
        return prepared(AutoModel.from_config(config, dtype=torch.float32))
    except (BackboneError, NotBuiltError):
        raise
    except Exception as error:  # a configuration may be inconsistent in any way
        raise NotBuiltError(first_line(error)) from error


def arm(kind: type[Classifier], model: PreTrainedModel, **options: Any) -> Any:
    """Return an arm on a model that is in memory."""
    with patch("modules.classifier.load_backbone", lambda name: model):
        made = kind(backbone=model.config.model_type, num_labels=3, **options)
    made.head.weight.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))  # a new head gives zeros
    return made


def first_line(error: BaseException) -> str:
    """Return what an error says, in one line that depends on no path."""
    text = " ".join(str(error).split()).removeprefix("Class validation error for validator 'validate_architecture': ")
    text = re.sub(r" (neither|nor)? ?in <module.*?>", "", text)
    return re.split(r"(?<=[^.])\. |\.$", text.removeprefix("ValueError: "))[0]


@dataclass(frozen=True)
class Outcome:
    """What the study makes of an architecture: a line of docs/backbones.md."""

    status: Literal["accepted", "refused", "not built"]
    reason: str = ""
    pooling: str = ""
    mask: str = ""
    known: str = ""
    masks: str = ""
    lora: str = ""


def outcome(model_type: str) -> Outcome:
    """Build an architecture and construct arms on it."""
    try:
        model = build(model_type)
        baseline = arm(Baseline, model)
    except NotBuiltError as error:
        return Outcome("not built", str(error))
    except BackboneError as error:
        reason = str(error).partition(": ")[2].partition(". Choose another")[0]
        return Outcome("refused", re.sub(" by [^ ]+ of the largest", "", reason))
    return Outcome(
        "accepted",
        pooling=baseline.pooling,
        mask="no: causal" if baseline.family.causal else "yes",
        known="table" if model_type in FAMILIES else "measured",
        masks=constructs(Influence, model),
        lora=constructs(LoRA, model),
    )


def constructs(kind: type[Classifier], model: PreTrainedModel) -> str:
    """Whether an arm can be constructed, or what its error names."""
    try:
        arm(kind, model)
    except BackboneError as error:
        named = re.search(r"\['(.*?)'|Module '(.*?)'", str(error))
        return f"name targets ({(named[1] or named[2]).removeprefix('backbone.') if named else 'no blocks'})"
    return "yes"


def listed(text: str) -> str:
    """docs/backbones.md with its list made anew."""
    outcomes = {model_type: outcome(model_type) for model_type in ARCHITECTURES}
    before, _, after = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{tables(outcomes)}{END}{after.partition(END)[2]}"


def tables(outcomes: dict[str, Outcome]) -> str:
    """Return the list as Markdown: a row per accepted architecture, then a row per reason."""
    accepted = {model_type: o for model_type, o in outcomes.items() if o.status == "accepted"}
    lines = [
        f"Transformers {transformers.__version__}: {len(accepted)} accepted.",
        "",
        "| `model_type` | vector | attention mask | known by | masks | LoRA |",
        "|---|---|---|---|---|---|",
        *(f"| {t} | {o.pooling} | {o.mask} | {o.known} | {o.masks} | {o.lora} |" for t, o in accepted.items()),
    ]
    for status, title in (("refused", "Refused"), ("not built", "Not built for the test")):
        reasons: dict[str, list[str]] = {}
        for model_type, o in outcomes.items():
            if o.status == status:
                reasons.setdefault(o.reason.replace("|", "\\|"), []).append(model_type)
        lines += ["", f"{title}: {sum(map(len, reasons.values()))}.", "", "| reason | `model_type` |", "|---|---|"]
        lines += [f"| {reason} | {', '.join(names)} |" for reason, names in sorted(reasons.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    DOC.write_text(listed(DOC.read_text()))
