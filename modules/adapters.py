"""A peft adapter given as a backbone: it is merged into the model that it was trained on."""

import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from modules.errors import BackboneError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WHOLE_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""Names of files with the weights of a whole model."""


def is_adapter(name: str) -> bool:
    """Whether a backbone is a folder with a peft adapter."""
    return (Path(name) / CONFIG).is_file()


def base_of(name: str) -> str:
    """Return the model that an adapter was trained on; for any other backbone its own name.

    Raises:
        BackboneError: If the folder also has the weights of a whole model, or the adapter does not say its base.
    """
    if not is_adapter(name):
        return name
    if whole := [path.name for pattern in WHOLE_WEIGHTS for path in sorted(Path(name).glob(pattern))]:
        raise BackboneError(
            f"The backbone {name!r} is both a peft adapter ({CONFIG}) and a whole model ({whole[0]}), and it does not "
            "say whether the adapter is in these weights already. Give a folder that has one of them."
        )
    try:
        base = json.loads((Path(name) / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unfit(name, f"its {CONFIG} names no base model ({type(error).__name__}: {error})") from error
    if not isinstance(base, str) or not base or is_adapter(base):
        raise _unfit(name, f"its base_model_name_or_path is {base!r}, which is no whole model")
    return base


def tokenizer_of(name: str) -> str:
    """Return where the tokenizer of a backbone is: an adapter's folder may leave it to the base."""
    return name if not is_adapter(name) or (Path(name) / "tokenizer_config.json").is_file() else base_of(name)


def merge(backbone: PreTrainedModel, name: str) -> PreTrainedModel:
    """Merge the adapter in a folder into its base, in place, and report it once.

    Raises:
        BackboneError: If the adapter is of a kind that cannot be merged, or does not fit.
    """
    try:
        with isolate_rng():  # adapters are initialized at random before they are loaded, and heads are drawn after them
            fault = _merge(backbone, Path(name))
    except Exception as error:  # peft may raise any exception about a file; the cause is kept
        reason = " ".join(" ".join(str(error).splitlines()[:2]).split()).rstrip(".")
        raise _unfit(name, f"{type(error).__name__}: {reason}") from error
    if fault:
        raise _unfit(name, fault)
    _report(f"The backbone {name!r} is a peft adapter: it is merged into its base {base_of(name)!r}.")
    return backbone.requires_grad_(True)


def _merge(backbone: PreTrainedModel, folder: Path) -> str | None:
    config = PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning:
        return f"it is of kind {config.peft_type.value}, which is not in the weights"
    if getattr(config, "megatron_config", None):
        return "its megatron_config would import a module of its choice"
    weights = load_file(folder / WEIGHTS)
    # An adapter of a language model or a classifier has names from outside the transformer, to which heads belong too.
    outside = f"base_model.model.{backbone.base_model_prefix}."
    holder: nn.Module = backbone
    if any(key.startswith(outside) for key in weights):
        weights = {key: value for key, value in weights.items() if key.startswith(outside)}
        holder = nn.ModuleDict({backbone.base_model_prefix: backbone})
    names = [path for path, _ in holder.named_modules()]
    saved = getattr(config, "modules_to_save", None) or []
    cast(Any, config).modules_to_save = [own for own in saved if any(f".{path}".endswith(f".{own}") for path in names)]
    config.task_type = None  # which asks for a model with a head
    adapted = PeftModel(holder, config)
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    if differing := sorted(expected ^ weights.keys()):
        return f"{differing[0]} is {'not in its weights' if differing[0] in expected else 'not in its base'}"
    set_peft_model_state_dict(adapted, weights)
    cast(Any, adapted).merge_and_unload(safe_merge=True)
    return None


def _unfit(name: str, fault: str) -> BackboneError:
    return BackboneError(
        f"The backbone {name!r} is a peft adapter that cannot be merged into its base: {fault}. Merge it "
        "where it was trained (merge_and_unload of peft, then save_pretrained), and give that folder."
    )


@lru_cache
@rank_zero_only
def _report(line: str) -> None:
    print(line, file=sys.stderr)
