"""Backbone families, held against every architecture of the installed transformers."""

from typing import Any

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, BEGIN, DOC, NotBuiltError, arm, build, listed
from torch import Tensor, nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from influence_masking import find_candidates
from modules import BackboneError, Baseline, Classifier, Influence, LoRA

LENGTHS = (11, 5, 8, 1)
MASK = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
IDS = torch.randint(10, 60, MASK.shape, generator=torch.Generator().manual_seed(0)) * MASK

NOT_CANDIDATES = (
    *("bias", "_norm.w", "norm.scale", "layernorm.", "embed", "indexer", "router", "shared_expert_gate"),
    *("mlp.gate.", "mixer.gate.", "feed_forward.gate."),
    *("conv1d", "conv_1d", "conv.conv", "conv_qk", "_sconv", "A_log", "time_mix", "rg_lru"),
    *("per_layer", "altup", "laurel", "vision", "image_encoder", "audio_tower", "vqmodel"),
    *("_global", "w2e_query", "e2w_query", "e2e_query"),  # for tokens and entities that are not there
)
"""What the names of matrices in blocks hold that are no weights of attention or MLPs."""


@torch.no_grad()
def in_a_batch_and_alone(read: Any, width: int) -> tuple[Tensor, Tensor]:
    """What `read` makes of the rows of a padded batch, and of each row alone; NaN where it makes nothing of them."""
    alone = [read(IDS[row : row + 1, :n], MASK[row : row + 1, :n]) for row, n in enumerate(LENGTHS)]
    return read(IDS, MASK), torch.cat(alone)


def was_right(model: PreTrainedModel) -> bool:
    """Whether logits kept clear of padding by the rule of before: a mask for types with a masked language model."""
    if not isinstance(getattr(model.config, "hidden_size", None), int):
        return False
    is_encoder = model.config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES

    def read(ids: Tensor, mask: Tensor) -> Tensor:
        states = model(input_ids=ids, attention_mask=mask if is_encoder else None).last_hidden_state
        assert states.shape[-1] == model.config.hidden_size
        if is_encoder:
            return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return states[torch.arange(len(ids)), mask.sum(1) - 1]

    try:
        batched, alone = in_a_batch_and_alone(read, model.config.hidden_size)
    except Exception:  # any error of a model means that it was not right
        return False
    return torch.allclose(batched, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))


def check_candidates(model: PreTrainedModel) -> None:
    """Candidates are the matrices of the blocks less the exceptions, and each has a gradient; or they are refused."""
    blocks = [name for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and m]
    starts = tuple(f"{block}." for block in blocks)
    in_blocks = [name for name, p in model.named_parameters() if p.ndim >= 2 and name.startswith(starts)]
    expected = {f"backbone.{name}" for name in in_blocks if not any(part in name for part in NOT_CANDIDATES)}
    try:
        influence = arm(Influence, model.requires_grad_(True), tune="all")
    except BackboneError as error:
        assert "--model.targets" in str(error)
        assert any(f"'{name}'" in str(error) for name in in_blocks)
        return
    candidates = find_candidates(influence, influence.masking.options.targets)
    assert set(candidates) == expected
    if model.config.model_type != "mra":  # its attention needs a kernel that it compiles, and is zero without
        influence.eval()(IDS, MASK).square().sum().backward()
        assert [name for name, parameter in candidates.items() if parameter.grad is None] == []
    model.zero_grad()
    check_lora(model, candidates)


def check_lora(model: PreTrainedModel, candidates: dict[str, nn.Parameter]) -> None:
    """LoRA adapts the candidates, or is refused and names what peft cannot adapt."""
    projections = {name.removeprefix("backbone.").removesuffix(".weight") for name in candidates}
    try:
        lora = arm(LoRA, model)
    except BackboneError as error:
        assert "peft cannot adapt" in str(error)
        return
    adapted = {name.partition(".lora_A")[0] for name, _ in lora.named_parameters() if ".lora_A" in name}
    assert {name.removeprefix("backbone.base_model.model.") for name in adapted} == projections


def check_logits_of_transformers(model: PreTrainedModel, ours: Classifier) -> None:
    """Where transformers' own class reads the last token by a linear layer, it gives the same logits."""
    own_class: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(model.config), None)
    if own_class is None or ours.pooling != "last":
        return
    config = type(model.config).from_dict(model.config.to_dict() | {"num_labels": 3, "pad_token_id": 0})
    theirs = own_class(config).eval()
    head = getattr(theirs, ours.family.head, None)
    if not isinstance(head, nn.Linear) or type(getattr(theirs, theirs.base_model_prefix)) is not type(model):
        return
    setattr(theirs, theirs.base_model_prefix, model)
    setattr(theirs, ours.family.head, ours.head)
    with torch.no_grad():
        logits = theirs(input_ids=IDS, attention_mask=MASK).logits
        torch.testing.assert_close(ours(IDS, MASK), logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_an_architecture_is_right_or_refused_by_name(model_type):
    try:
        model = build(model_type)
    except NotBuiltError as error:
        pytest.skip(str(error))
    except BackboneError as error:
        assert model_type in str(error)
        return
    rightly_read = was_right(model.eval())
    try:
        classifier = arm(Baseline, model.train()).eval()
    except BackboneError as error:
        assert model.config.model_type in str(error)
        assert not rightly_read
        return
    batched, alone = in_a_batch_and_alone(classifier, 3)
    assert batched.isfinite().all()
    torch.testing.assert_close(batched, alone, rtol=0, atol=1e-5)
    check_logits_of_transformers(model, classifier)
    check_candidates(model)


@pytest.mark.slow
def test_the_list_of_architectures_is_the_one_of_the_documentation():
    text = DOC.read_text()
    version = f"Transformers {transformers.__version__}:"
    if version not in text:
        pytest.skip(f"the list was made with another version; make it anew with {transformers.__version__}")
    assert BEGIN in text
    assert listed(text) == text, "make it anew: python tests/modules/architectures.py"
