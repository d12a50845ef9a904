"""The weights of a model that may be masked, found by name."""

import difflib
import re
from collections.abc import Iterator, Sequence

from torch import nn

from influence_masking.errors import MaskingError
from influence_masking.masks.names import bare_name, canonical_name

DEFAULT_TARGETS: tuple[str, ...] = (
    # Llama, Qwen, Mistral, Gemma, OPT
    *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "gate_proj", "up_proj", "down_proj", "fc1", "fc2"),
    # Phi, Falcon, GPT-NeoX
    *("qkv_proj", "gate_up_proj", "query_key_value", "dense_h_to_4h", "dense_4h_to_h", "attention.dense"),
    # BERT, RoBERTa, ELECTRA, MiniLM, ViT
    *("attention.self.query", "attention.self.key", "attention.self.value"),
    *("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
    # DistilBERT
    *("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"),
    # GPT-2
    *("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    # torch.nn.TransformerEncoderLayer
    *("self_attn.in_proj_weight", "linear1", "linear2"),
)
"""Suffixes of the attention and MLP projections of common transformers."""


def find_candidates(module: nn.Module, targets: Sequence[str] | str | None = None) -> dict[str, nn.Parameter]:
    """Find the parameters that may be masked: tied ones once, frozen ones included.

    Args:
        module: The model; it may be wrapped by peft, compiled or sharded.
        targets: A sequence of name suffixes as in peft: `"q_proj"` matches every `....q_proj.weight`, and peft's
            `.base_layer` may be omitted. Or a regular expression that matches whole names. None takes the matrices that
            `DEFAULT_TARGETS` matches.

    Returns:
        Parameters by name, in the model's order. Names are those of `module.named_parameters()` without the
        `_orig_mod` of `torch.compile`.

    Raises:
        MaskingError: If nothing matches, an element of a sequence matches nothing, or a match is quantized.
    """
    names = _names_of(module)
    patterns = [targets] if isinstance(targets, str) else list(DEFAULT_TARGETS if targets is None else targets)
    match = _full_match if isinstance(targets, str) else _suffix_match
    matches = {pattern: [name for name in names if match(name, pattern)] for pattern in patterns}
    if targets is None:
        matches = {p: [name for name in matched if names[name].ndim >= 2] for p, matched in matches.items()}
    unused = [pattern for pattern, matched in matches.items() if not matched]
    if not patterns:
        raise MaskingError(
            "targets=[] matches no parameter. Set `targets` to a list of name suffixes, to a regular expression of "
            "whole parameter names, or to None for attention and MLP matrices."
        )
    if unused and (targets is not None or len(unused) == len(matches)):
        raise MaskingError(_nothing_matches(unused, names, is_default=targets is None))
    chosen = {id(names[name]) for matched in matches.values() for name in matched}
    first_names = {canonical_name(name): parameter for name, parameter in module.named_parameters()}
    candidates = {name: p for name, p in first_names.items() if id(p) in chosen}
    _refuse_quantized(candidates)
    return candidates


def _names_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by name, a tied one under each of its names."""
    return {canonical_name(name): p for name, p in module.named_parameters(remove_duplicate=False)}


def _suffix_match(name: str, suffix: str) -> bool:
    forms = (name, name.replace(".base_layer", ""), bare_name(name))
    return any(form == suffix or form.endswith("." + suffix) for form in forms)


def _full_match(name: str, pattern: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise MaskingError(
            f"targets={pattern!r} is not a regular expression: {error}. Pass one that matches whole parameter names, "
            "or a list of name suffixes."
        ) from error


def _nothing_matches(unused: Sequence[str], names: dict[str, nn.Parameter], *, is_default: bool) -> str:
    wanted = "the default targets (attention and MLP projections)" if is_default else f"targets={list(unused)}"
    matrices = [name for name, p in names.items() if p.ndim >= 2]
    near = list(dict.fromkeys(close for pattern in unused for close in _near_misses(pattern, matrices)))
    hint = f"near misses: {near[:10]}" if near and not is_default else f"its weight matrices: {matrices[:10]}"
    return (
        f"No parameter of the module matches {wanted}. Found {hint} ({len(matrices)} matrices in all). Set `targets` "
        "to a list of name suffixes or to a regular expression of whole parameter names."
    )


def _near_misses(pattern: str, names: Sequence[str]) -> Iterator[str]:
    leaves = {name: bare_name(name).rpartition(".")[2] for name in names}
    close = difflib.get_close_matches(pattern.rpartition(".")[2], set(leaves.values()), n=3, cutoff=0.5)
    yield from (name for name, leaf in leaves.items() if leaf in close)


def _refuse_quantized(candidates: dict[str, nn.Parameter]) -> None:
    for name, parameter in candidates.items():
        if not parameter.is_floating_point():
            raise MaskingError(
                f"{name} is quantized and has no gradient, found type {parameter.dtype}. Remove it from `targets`, or "
                "load the model in a floating-point type."
            )
