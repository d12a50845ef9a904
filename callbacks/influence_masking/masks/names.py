"""What the name of a parameter says: its layer, and its projection within the layer."""

import re


def canonical_name(name: str) -> str:
    """Returns a parameter's name without the marks that ``torch.compile`` leaves in it."""
    return name.replace("_orig_mod.", "")


def layer_of(name: str) -> str:
    """Returns the layer that a parameter belongs to: its name up to the first number, or its module if it has none.

    >>> layer_of("model.layers.3.self_attn.q_proj.weight")
    'model.layers.3'
    """
    numbered = re.match(r"(.*?(?:^|\.)\d+)\.", name)
    return numbered.group(1) if numbered else name.rpartition(".")[0]


def projection_of(name: str) -> str:
    """Returns what a parameter is within its layer.

    >>> projection_of("model.layers.3.self_attn.q_proj.weight")
    'self_attn.q_proj'
    """
    return bare_name(name.removeprefix(layer_of(name)).removeprefix("."))


def bare_name(name: str) -> str:
    """Returns a parameter's name without `.weight` and without peft's `.base_layer`."""
    return name.removesuffix(".weight").replace(".base_layer", "")
