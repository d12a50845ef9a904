"""Backbone families: how each pools its tokens, who sees whom, and which of its weights may be masked or adapted.

A row of `FAMILIES` is for a `model_type` of transformers. A type without a row is measured when its classifier is
built (`measure`), and its weights are recognized by the names that most families share.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf, isnan
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from modules.backbone import Pooling, visible
from modules.errors import BackboneError

PADDING_TOLERANCE = 1e-4
"""Largest difference of token states, relative to the largest value, that counts as rounding."""

PROBE_LENGTHS = (7, 3)
"""Tokens of the two rows that `measure` reads."""


@dataclass(frozen=True)
class Family:
    """What the study must know about a backbone.

    Attributes:
        pooling: Which token states become the vector of a text: the `last` one or their `mean`.
        causal: Whether attention is causal. Right padding then needs no attention mask.
        head: Name of the linear layer in transformers' own sequence classifier that reads the last token.
        candidates: Regular expression of parameters that are candidates in addition to those that `COMMON` matches.
            Names begin inside a block: `self_attn.q_proj.weight`.
        exceptions: Regular expression of matrices in the blocks that are not candidates.
    """

    pooling: Pooling
    causal: bool
    head: str = "score"
    candidates: str = ""
    exceptions: str = ""


DECODER = Family("last", causal=True)
ENCODER = Family("mean", causal=False)
MIXERS = replace(  # a state-space layer's mixer takes the place of attention
    DECODER,
    candidates=r"(mamba|mixer|conv)\.((q|k|v|o|x|dt|in|out|up|down)_proj|shared_experts\.\w+)\.weight",
)


def _rows(model_types: str, family: Family) -> dict[str, Family]:
    return dict.fromkeys(model_types.split(), family)


FAMILIES: dict[str, Family] = {
    **_rows(
        """
        apertus arcee biogpt bloom codegen cohere cohere2 exaone4 falcon gemma gemma2 gemma3_text glm glm4 gpt2
        gpt_bigcode gpt_neo gpt_neox gptj granite helium llama ministral ministral3 mistral modernbert-decoder mpt
        nemotron olmo olmo2 olmo3 olmo_hybrid openai-gpt opt persimmon phi phi3 qwen2 qwen3 qwen3_5_text seed_oss
        smollm3 stablelm starcoder2 vaultgemma xglm

        deepseek_v2 deepseek_v3 ernie4_5_moe glm4_moe gpt_oss granitemoe granitemoeshared mixtral olmoe phimoe qwen2_moe
        qwen3_5_moe_text qwen3_moe qwen3_next
        """,
        DECODER,
    ),
    **_rows("bamba falcon_h1 falcon_mamba granitemoehybrid jamba lfm2 lfm2_moe lfm3 mamba mamba2 nemotron_h", MIXERS),
    "axk2": replace(DECODER, exceptions=r"\w+_layernorm\.mlp\..*"),
    "ctrl": replace(DECODER, head="classifier"),
    "dbrx": replace(DECODER, candidates=r"norm_attn_norm\.attn\.\w+\.weight|ffn\.experts\.mlp\.\w+"),
    "gemma3n_text": replace(DECODER, exceptions=r"(altup|laurel|per_layer_\w+)\..*"),  # paths beside attention and MLP
    "gemma4_text": replace(DECODER, exceptions=r"per_layer_\w+\.weight"),
    "jetmoe": replace(
        DECODER,
        candidates=r"(self_attention\.experts|mlp)\.(in|out)put_linear\.weight",
        exceptions=r".*\.router\.layer\.weight",
    ),
    "recurrent_gemma": replace(
        DECODER, candidates=r"temporal_block\.linear_\w+\.weight", exceptions=r"temporal_block\.rg_lru\.\w+_weight"
    ),
    "rwkv": replace(DECODER, exceptions=r".*\.time_mix_\w+"),
    **_rows(
        "zamba zamba2",
        replace(
            DECODER,
            candidates=r"((mamba_decoder\.)?mamba\.(in|out)_proj|shared_transf(ormer)?\..*|linear)\.weight",
            exceptions=r"(mamba_decoder\.)?mamba\.((x|dt)_proj_weight|D)",
        ),
    ),
    "xlstm": replace(DECODER, candidates=r"mlstm_layer\.\w+\.weight"),
    **_rows(
        """
        bert bert-generation big_bird camembert data2vec-text deberta deberta-v2 distilbert electra ernie esm eurobert
        flaubert megatron-bert modernbert mpnet nomic_bert rembert roberta roberta-prelayernorm roc_bert roformer xlm
        xlm-roberta xlm-roberta-xl
        """,
        ENCODER,
    ),
    **_rows("bart mbart mvp plbart", ENCODER),  # both halves read the text, and the decoder's states are pooled
    "albert": replace(ENCODER, candidates=r"albert_layers\.\d+\.(attention\.\w+|ffn|ffn_output)\.weight"),
    "embedding_gemma2_text": replace(ENCODER, exceptions=r"ple_block\..*"),
    **_rows("longformer led", replace(ENCODER, exceptions=r".*_global\.weight")),  # for globally attending tokens: none
    "luke": replace(ENCODER, exceptions=r"attention\.self\.(w2e|e2w|e2e)_query\.weight"),  # for entities: none either
    "mobilebert": replace(ENCODER, candidates=r"bottleneck\.\w+\.dense\.weight"),
    "xlnet": replace(ENCODER, candidates=r"rel_attn\.[qkvor]", exceptions=r"rel_attn\.seg_embed"),
}
"""By `model_type` of transformers. A type without a row is measured."""

ATTENTION = r"attn|attention|self_att|\w+_(attn|attention)|[qkv]_lin|out_lin"
MLP = r"mlps?|mlp_block|ffn|ff|feed_forward|block_sparse_moe|shared_mlp|moe|intermediate|output|fc[12]|lin[12]"
COMMON = re.compile(rf"({ATTENTION}|{MLP})\..*")
"""What the parameters of attention and MLPs begin with inside a block, in most families."""

EXPERTS = re.compile(r"(.*\.)?experts\.\w+")
ROUTER = re.compile(r"(.*?)\.(router|gate|shared_expert_gate)\..*")
NEVER = re.compile(r".*(bias|A_log|\.indexer\..*)")
"""Exceptions of every family: one bias per expert or head, decay rates, and what selects tokens without a gradient."""

OTHER_INPUTS = re.compile(r"(.*[._])?(vision|visual|image|audio|video)(_\w+)?\..*")
"""Blocks that texts do not pass through: exceptions too."""


def family_of(backbone: PreTrainedModel, name: str) -> Family:
    """Return the row of the backbone's type, or the result of `measure` if there is none or it does not apply.

    Args:
        backbone: As `load_backbone` returns it.
        name: What the user called it, for messages.

    Raises:
        BackboneError: If the backbone does not take texts, or padding changes what it computes.
    """
    config, row = backbone.config, FAMILIES.get(backbone.config.model_type)
    if row and not _departs(config, row):
        return row
    causal = measure(backbone, name)
    pooling: Pooling = "last" if causal and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "mean"
    return replace(row or DECODER, pooling=pooling, causal=causal)


def _departs(config: Any, row: Family) -> bool:
    """Return whether the configuration makes a decoder bidirectional or an encoder causal."""
    if row.causal:
        return getattr(config, "is_causal", None) is False or bool(getattr(config, "use_bidirectional_attention", None))
    return bool(getattr(config, "is_decoder", None)) or getattr(config, "is_causal", None) is True


def state_width(backbone: PreTrainedModel) -> int:
    """Return the width of a token's last state."""
    projected = getattr(backbone.config, "word_embed_proj_dim", None)  # OPT 350m leaves its blocks narrower than it is
    return projected or backbone.config.hidden_size


@torch.no_grad()
def measure(backbone: PreTrainedModel, name: str) -> bool:
    """Read a few tokens alone and in a padded batch; refuse a backbone whose states differ.

    It costs four forward passes over at most 14 tokens. Weights, modes and random state are left as they were.

    Returns:
        Whether the backbone is causal.

    Raises:
        BackboneError: If it does not run on token ids and a mask alone, or padding changes its states.
    """
    was_training = backbone.training
    try:
        if (fault := input_fault(backbone)) is None:
            with torch.random.fork_rng(devices=[]):
                causal, fault = _probe(backbone.eval())
    except Exception as error:  # a model may raise anything about inputs that it lacks; the cause is kept
        raise _unfit(backbone, name, f"it fails on token ids alone ({type(error).__name__}: {error})") from error
    finally:
        backbone.train(was_training)
    if fault:
        raise _unfit(backbone, name, fault)
    return causal


def _unfit(backbone: PreTrainedModel, name: str, fault: str) -> BackboneError:
    return BackboneError(
        f"The backbone {name!r} ({backbone.config.model_type}) cannot classify texts: {fault}. Choose another one: "
        "docs/backbones.md lists those that can."
    )


def input_fault(backbone: Any) -> str | None:
    """Return why a backbone, or its class with a `config`, cannot classify texts; None if it can."""
    if backbone.main_input_name != "input_ids":
        return f"it takes {backbone.main_input_name} instead of token ids"
    if not isinstance(getattr(backbone.config, "hidden_size", None), int):
        return "its configuration has no hidden_size, as it is made of several models"
    return None


def _probe(backbone: PreTrainedModel) -> tuple[bool, str | None]:
    """Return whether the backbone is causal, and what is wrong with it, or None."""
    ids, mask = _probe_batch(backbone.config)
    whole = _states(backbone, ids[:1], None)
    if whole.shape[-1] != state_width(backbone):
        return False, f"its states are {whole.shape[-1]} wide, its configuration says {state_width(backbone)}"
    changed = ids[:1].clone()
    changed[0, -1] = ids[1, 0]
    causal = _difference(whole[:, :-1], _states(backbone, changed, None)[:, :-1]) <= PADDING_TOLERANCE
    padded = _states(backbone, ids, visible(mask, causal))
    worst = 0.0
    for row, length in enumerate(PROBE_LENGTHS):
        alone = _states(backbone, ids[row : row + 1, :length], visible(mask[row : row + 1, :length], causal))
        worst = max(worst, _difference(alone[0], padded[row, :length]))
    fault = f"padding changes its token states by {worst:.1e} of the largest" if worst > PADDING_TOLERANCE else None
    return causal, fault


def _probe_batch(config: Any) -> tuple[Tensor, Tensor]:
    """Return ids and mask of two right-padded rows of `PROBE_LENGTHS`; ids in the middle of a vocabulary are words."""
    vocabulary = config.vocab_size if isinstance(getattr(config, "vocab_size", None), int) else 100
    pad = config.pad_token_id if isinstance(getattr(config, "pad_token_id", None), int) else 0
    mask = (torch.arange(max(PROBE_LENGTHS)) < torch.tensor(PROBE_LENGTHS)[:, None]).long()
    ids = vocabulary // 3 + torch.arange(mask.numel()).view_as(mask) * 7 % max(1, vocabulary // 3)
    return torch.where(mask.bool(), ids, pad if 0 <= pad < vocabulary else 0), mask


def _states(backbone: PreTrainedModel, ids: Tensor, mask: Tensor | None) -> Tensor:
    device = backbone.device
    mask = None if mask is None else mask.to(device)
    return backbone(input_ids=ids.to(device), attention_mask=mask).last_hidden_state.float()


def _difference(left: Tensor, right: Tensor) -> float:
    """Return the largest difference, relative to the largest value; infinite if a value is not finite."""
    largest = float((left - right).abs().max() / left.abs().max().clamp(min=1e-12))
    return inf if isnan(largest) else largest


def candidate_names(backbone: nn.Module, family: Family, name: str) -> list[str]:
    """Return the names of the weight matrices of attention and MLPs in the repeated blocks, less the exceptions.

    Raises:
        BackboneError: If there are no blocks, or a matrix in them is neither a candidate nor an exception.
    """
    modules = dict(backbone.named_modules())
    chosen: list[str] = []
    unknown: list[str] = []
    for path, inside, parameter in block_matrices(backbone):
        owner = modules[path.rpartition(".")[0]]
        if _is_exception(modules, path, inside, owner, family):
            continue
        (chosen if _is_candidate(inside, owner, parameter, family) else unknown).append(path)
    if unknown or not chosen:
        rest = f"has weights that are not known: {unknown[:5]} ({len(unknown)} in all)" if unknown else "has no blocks"
        raise BackboneError(
            f"The weights of attention and MLPs in the backbone {name!r} cannot be told from others: it {rest}. Name "
            "those that are to be masked or adapted: --model.targets, a list of name endings or a regular expression."
        )
    return chosen


def block_matrices(backbone: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Yield every parameter of two dimensions or more in the repeated blocks: its name, its name in the block, itself.

    Blocks are the elements of a model's outermost `ModuleList`s of modules with parts.
    """
    lists = [path for path, module in backbone.named_modules() if _holds_blocks(module)]
    outermost = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    for path, parameter in backbone.named_parameters():
        for block_list in outermost:
            if parameter.ndim >= 2 and path.startswith(f"{block_list}."):
                yield path, path.removeprefix(f"{block_list}.").partition(".")[2], parameter


def _holds_blocks(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and any(True for element in module for _ in element.children())


def _is_exception(modules: dict[str, nn.Module], path: str, inside: str, owner: nn.Module, family: Family) -> bool:
    if OTHER_INPUTS.fullmatch(path) or NEVER.fullmatch(inside) or re.fullmatch(family.exceptions, inside):
        return True
    if (router := ROUTER.fullmatch(path)) and hasattr(modules[router[1]], "experts"):
        return True
    mixes_neighbors = isinstance(owner, nn.Conv1d | nn.Conv2d) and max(owner.kernel_size) > 1
    return mixes_neighbors or isinstance(owner, nn.Embedding) or "Norm" in type(owner).__name__


def _is_candidate(inside: str, owner: nn.Module, parameter: nn.Parameter, family: Family) -> bool:
    if re.fullmatch(family.candidates, inside):
        return True
    is_expert = parameter.ndim == 3 and EXPERTS.fullmatch(inside)
    is_projection = inside.endswith(".weight") and re.search("Linear|^Conv1D$", type(owner).__name__)
    return bool(is_expert or (is_projection and COMMON.fullmatch(inside)))


def as_targets(names: list[str], backbone: nn.Module) -> list[str]:
    """Return the shortest endings that match `names` alone: names inside a block if possible, otherwise all names."""
    inside = {path: within for path, within, _ in block_matrices(backbone)}
    endings = list(dict.fromkeys(inside[name] for name in names))
    others = {path for path, _ in backbone.named_parameters()} - set(names)
    others |= {path.removesuffix(".weight") for path in others}
    unique = not any(f".{form}".endswith(f".{ending}") for form in others for ending in endings)
    return endings if unique and all(endings) else names
