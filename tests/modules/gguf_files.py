"""Write a folder of a tiny Llama or Qwen2 as a GGUF file, the way llama.cpp's converter does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize
from safetensors.torch import load_file, save_file

Q8_0, Q4_0, F16, F32 = (getattr(GGMLQuantizationType, name) for name in ("Q8_0", "Q4_0", "F16", "F32"))

NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Names of modules in transformers and in GGUF."""


def type_of(name: str) -> GGMLQuantizationType:
    """Mixed types, as in published files: vectors stay whole, the embeddings are the finest of the matrices."""
    if "norm" in name or name.endswith("bias"):
        return F32
    return Q8_0 if "embd" in name else F16 if "attn_v" in name else Q4_0


def gguf_name(name: str) -> str:
    """`layers.0.mlp.up_proj.weight` as `blk.0.ffn_up.weight`."""
    module, _, kind = name.rpartition(".")
    if not module.startswith("layers."):
        return f"{NAMES[module]}.{kind}"
    _, layer, inside = module.split(".", 2)
    return f"blk.{layer}.{NAMES[inside]}.{kind}"


def write_gguf(
    model: Path,
    file: Path,
    tokenizer: bool = True,
    keep: Callable[[str], bool] = lambda name: True,
    more: dict[str, np.ndarray] | None = None,
    architecture: str | None = None,
) -> Path:
    """Write a model's folder into a file, without the tensors that `keep` refuses, with `more` tensors.

    Returns:
        A folder beside it, `<file>.expected`, with the weights that the file stands for and the model's tokenizer.
    """
    config = json.loads((model / "config.json").read_text())
    architecture = architecture or config["model_type"]
    writer = GGUFWriter(file, architecture)
    _add_sizes(writer, config)
    if tokenizer:
        _add_tokenizer(writer, json.loads((model / "tokenizer.json").read_text()))
    expected = {}
    for name, tensor in load_file(model / "model.safetensors").items():
        stored, values = gguf_name(name), tensor.numpy()
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(
            stored.split(".")[2] if stored.startswith("blk.") else ""
        )
        is_permuted = heads is not None and config["model_type"] == "llama"
        data = quantize(_permuted(values, heads) if is_permuted else values, type_of(stored))
        if keep(stored):
            writer.add_tensor(stored, data, raw_dtype=type_of(stored))
        whole = dequantize(data, type_of(stored))
        expected[name] = torch.from_numpy(_permuted(whole, heads, back=True) if is_permuted else whole).clone()
    for name, values in (more or {}).items():
        writer.add_tensor(name, values, raw_dtype=F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return _write_expected(model, file.with_name(f"{file.name}.expected"), expected)


def _write_expected(model: Path, folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    for path in model.iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


def _permuted(values: np.ndarray, heads: int, back: bool = False) -> np.ndarray:
    """Rows of a Llama's query or key in llama.cpp's order of rotary dimensions (`permute` of its converter)."""
    halves = (heads, values.shape[0] // heads // 2, 2) if back else (heads, 2, values.shape[0] // heads // 2)
    return np.ascontiguousarray(values.reshape(*halves, -1).swapaxes(1, 2).reshape(values.shape))


def _add_sizes(writer: GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(256)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: GGUFWriter, content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    special = {token["content"] for token in content["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])
    writer.add_eos_token_id(vocabulary["<|endoftext|>"])
    writer.add_unk_token_id(vocabulary["<unk>"])
