"""The layer of a parameter and its projection within the layer, from its name."""

import re


def canonical_name(name: str) -> str:
    """Return a parameter's name without the `_orig_mod` of `torch.compile`."""
    return name.replace("_orig_mod.", "")


def layer_of(name: str) -> str:
    """Return the layer of a parameter: its name up to the first number, or without a number its module.

    >>> layer_of("model.layers.3.self_attn.q_proj.weight")
    'model.layers.3'
    """
    numbered = re.match(r"(.*?(?:^|\.)\d+)\.", name)
    return numbered.group(1) if numbered else name.rpartition(".")[0]


def projection_of(name: str) -> str:
    """Return the name of a parameter within its layer.

    >>> projection_of("model.layers.3.self_attn.q_proj.weight")
    'self_attn.q_proj'
    """
    return bare_name(name.removeprefix(layer_of(name)).removeprefix("."))


def bare_name(name: str) -> str:
    """Return a parameter's name without `.weight` and without peft's `.base_layer`."""
    return name.removesuffix(".weight").replace(".base_layer", "")
