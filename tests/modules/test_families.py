"""Backbone families, held against every architecture of the installed transformers."""

import re
from typing import Any

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, BEGIN, DOC, NotBuiltError, arm, build, listed
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from influence_masking import find_candidates
from modules import BackboneError, Baseline, Classifier, Influence, LoRA
from modules.families import family_of

LENGTHS = (11, 5, 8, 1)
MASK = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
IDS = torch.randint(10, 60, MASK.shape, generator=torch.Generator().manual_seed(0)) * MASK

NOT_CANDIDATES = (
    *("bias", "_norm.w", "norm.scale", "layernorm.", "embed", "indexer", "router", "shared_expert_gate"),
    *("mlp.gate.", "mixer.gate.", "feed_forward.gate."),
    *("conv1d", "conv_1d", "conv.conv", "conv_qk", "_sconv", "A_log", "time_mix", "rg_lru"),
    *("mamba.x_proj_weight", "mamba.dt_proj_weight", "mamba.D"),
    *("per_layer", "altup", "laurel", "vision", "image_encoder", "audio_tower", "vqmodel"),
    *("_global", "w2e_query", "e2w_query", "e2e_query"),  # for tokens and entities that are not there
)
"""What the names of matrices in blocks hold that are no weights of attention or MLPs."""


@torch.no_grad()
def in_a_batch_and_alone(read: Any) -> tuple[Tensor, Tensor]:
    """Return what `read` makes of the rows of a padded batch, and of each row alone."""
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
        batched, alone = in_a_batch_and_alone(read)
    except Exception:  # any error of a model means that it was not right
        return False
    return torch.allclose(batched, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))


def check_candidates(model: PreTrainedModel) -> None:
    """Check that candidates are the blocks' matrices less the exceptions, each with a gradient, or are refused."""
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
    setattr(theirs, ours.family.head, ours.head.as_linear())
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
    batched, alone = in_a_batch_and_alone(classifier)
    assert batched.isfinite().all()
    torch.testing.assert_close(batched, alone, rtol=0, atol=1e-5)
    check_logits_of_transformers(model, classifier)
    check_candidates(model)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("llama", {"is_causal": False}),
        ("gemma3_text", {"use_bidirectional_attention": True}),
        ("bert", {"is_decoder": True}),
    ],
)
def test_a_configuration_that_turns_attention_around_is_measured(model_type, options):
    usual = arm(Baseline, build(model_type))
    turned = arm(Baseline, build(model_type, **options)).eval()
    assert turned.family.causal is not usual.family.causal
    assert turned.pooling == ("last" if turned.family.causal and model_type != "bert" else "mean")
    torch.testing.assert_close(*in_a_batch_and_alone(turned), rtol=0, atol=1e-5)


def test_a_type_with_a_row_is_not_measured_and_one_without_is_left_as_it_was(monkeypatch):
    model, unknown = build("qwen2").train(), build("gte").train()
    state = torch.get_rng_state()
    monkeypatch.setattr("modules.families._probe", lambda backbone: (False, "it was measured"))
    assert family_of(model, "known").causal
    with pytest.raises(BackboneError, match=r"'unknown' \(gte\) cannot classify texts: it was measured"):
        family_of(unknown, "unknown")
    monkeypatch.undo()
    assert not family_of(unknown, "unknown").causal
    assert unknown.training
    assert torch.equal(torch.get_rng_state(), state)


def test_long_texts_of_big_bird_do_not_depend_on_padding():
    classifier = arm(Baseline, build("big_bird", block_size=4, num_random_blocks=1)).eval()
    ids, mask = torch.arange(10, 80).expand(2, -1), torch.ones(2, 70, dtype=torch.long)
    mask[1, 50:] = 0
    with torch.no_grad():
        torch.testing.assert_close(classifier(ids, mask)[1:], classifier(ids[1:, :50], mask[1:, :50]))


@pytest.mark.parametrize(("pooling", "bias"), [("mean", True), ("last", False)])
def test_pooling_is_the_one_that_is_asked_for(pooling, bias):
    for model_type in ("qwen2", "bert"):
        classifier = arm(Baseline, build(model_type), pooling=pooling).eval()
        assert (classifier.pooling, classifier.head.bias is not None) == (pooling, bias)
        torch.testing.assert_close(*in_a_batch_and_alone(classifier), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [Influence, LoRA])
def test_targets_are_those_that_are_asked_for_also_where_the_family_has_none(kind):
    model = build("hy_v4")
    with pytest.raises(BackboneError, match=r"hc\.fn.*--model\.targets"):
        arm(kind, model)
    built = arm(kind, model, targets=["self_attn.kv_b_proj", "q_a_proj"])
    names = {name for name, parameter in built.named_parameters() if "lora_A" in name} or set(
        find_candidates(built, built.masking.options.targets)
    )
    assert {re.search(r"self_attn\.(\w+)", name)[1] for name in names} == {"q_a_proj", "kv_b_proj"}


@pytest.mark.parametrize("model_type", ["qwen2", "bert"])
def test_masks_and_adapters_of_the_studys_models_are_what_they_were(model_type):
    influence = arm(Influence, build(model_type))
    assert list(find_candidates(influence, influence.masking.options.targets)) == list(find_candidates(influence))

    adapters = []
    for kind in (LoRA, Baseline):  # both draw their head before
        model = build(model_type)
        torch.manual_seed(1)
        backbone = arm(kind, model).backbone
        if kind is Baseline:
            backbone = get_peft_model(backbone, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
        adapters.append({name: p for name, p in backbone.named_parameters() if "lora_" in name})
    assert list(adapters[0]) == list(adapters[1])
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[1])


@pytest.mark.slow
def test_the_list_of_architectures_is_the_one_of_the_documentation():
    text = DOC.read_text()
    version = f"Transformers {transformers.__version__}:"
    if version not in text:
        pytest.skip(f"the list was made with another version; make it anew with {transformers.__version__}")
    assert BEGIN in text
    assert listed(text) == text, "make it anew: python tests/modules/architectures.py"
