"""A module of the study as a model of transformers, and its adapter as one of peft; tensors are shared, not copied."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from datamodules import TextDataModule
from lightning_app.deploy.export.mean_pooled import MeanPooledConfig, MeanPooledForSequenceClassification
from lightning_app.errors import UsageError
from modules import Classifier, LoRA
from modules.backbone import published_name, resolve_backbone

PROBES = (
    "A short text.",
    "A text with more words, so that the others are padded on their right.",
    "A text that ends in {pad}",
    "{pad} in a text, and twice at its end {pad} {pad}",
    "{pad}",
)
"""What both models read before anything is written; `{pad}` is the pad token, which users' texts may have in them."""

TOLERANCE = 1e-3
"""By which logits may differ: merging an adapter and other attention kernels round otherwise."""


def save_adapter(module: LoRA, folder: Path) -> None:
    """Write the adapter and the head for the model class that `to_transformers` takes; before it merges them."""
    backbone = cast(PeftModel, module.backbone)
    inside = f"base_model.model.{_model_class(module).base_model_prefix}."
    weights = {
        name.replace("base_model.model.", inside, 1): tensor.contiguous()
        for name, tensor in get_peft_model_state_dict(backbone).items()
    }
    head = _head_name(module)
    weights |= {
        f"base_model.model.{head}.{name}": tensor.contiguous()
        for name, tensor in module.head.as_linear().state_dict().items()
    }
    config = cast(LoraConfig, backbone.peft_config["default"])
    published = published_name(module.backbone_name)
    LoraConfig(
        task_type="SEQ_CLS",
        base_model_name_or_path=resolve_backbone(published) if Path(published).is_file() else published,
        target_modules=config.target_modules,
        modules_to_save=[head],
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        inference_mode=True,
    ).save_pretrained(str(folder))
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def to_transformers(module: Classifier, datamodule: TextDataModule) -> PreTrainedModel:
    """Return the module's weights in the class of transformers that computes what it computes; adapters are merged.

    Args:
        module: In eval mode, on the CPU. A LoRA's backbone is merged in place.
        datamodule: Its names of the classes and its tokenizer's pad token are written into the model's configuration.

    Raises:
        UsageError: If transformers has no such class, or its logits differ.
    """
    tokenizer = datamodule.tokenizer
    probes = [text.format(pad=tokenizer.pad_token) for text in PROBES]
    expected = logits_of_run(module, datamodule, probes)
    backbone = module.backbone
    if isinstance(backbone, PeftModel):
        backbone = cast(Any, backbone).merge_and_unload()
    with torch.device("meta"):  # its own weights are never made
        model = _model_class(module)(_config(module, tokenizer, datamodule.label_names))
    prefix, head = model.base_model_prefix, _head_name(module)
    if type(getattr(model, prefix, None)) is not type(backbone) or not isinstance(
        getattr(model, head, None), nn.Linear
    ):
        raise UsageError(
            f"{type(model).__name__} of transformers is not {type(backbone).__name__} with a linear layer `{head}`, so "
            f"a run on {module.backbone_name!r} cannot be exported to it."
        )
    setattr(model, prefix, backbone)
    setattr(model, head, module.head.as_linear())
    found = logits_of_user(model.eval(), tokenizer, probes)
    if not torch.allclose(expected, found, rtol=TOLERANCE, atol=TOLERANCE):
        differences = (expected - found).abs().amax(1)
        text = probes[int(differences.argmax())]
        raise UsageError(
            f"{type(model).__name__} of transformers should give the logits of the run, but they differ by "
            f"{float(differences.max()):.3g} for the text {text!r}, so nothing is exported."
        )
    return model


@torch.no_grad()
def logits_of_run(module: Classifier, datamodule: TextDataModule, texts: Sequence[str]) -> Tensor:
    """Return the logits of texts [texts, num_labels], tokenized and batched as `influence predict` does."""
    logits = torch.empty(len(texts), module.num_labels)
    for batch in datamodule.texts_dataloader(texts):
        rows = batch["row"]
        logits[rows[rows >= 0]] = module(batch["input_ids"], batch["attention_mask"])[rows >= 0]
    return logits


@torch.no_grad()
def logits_of_user(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    """Return the logits of texts [texts, num_labels] in one batch, as the model card makes it."""
    batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    return cast(nn.Module, model)(**batch).logits.float()


def _model_class(module: Classifier) -> type[PreTrainedModel]:
    """Return our own class for encoders, and for others the class that transformers maps their configuration to."""
    if module.pooling == "mean":
        return MeanPooledForSequenceClassification
    config = cast(PretrainedConfig, module.backbone.config)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UsageError(
            f"The backbone {module.backbone_name!r} is a {config.model_type!r}, for which transformers has no sequence "
            "classifier, so it cannot be exported."
        )
    return cast(type[PreTrainedModel], MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)])


def _head_name(module: Classifier) -> str:
    return "classifier" if module.pooling == "mean" else module.family.head


def _config(module: Classifier, tokenizer: PreTrainedTokenizerBase, label_names: Sequence[str]) -> PretrainedConfig:
    """Return the backbone's configuration with the labels and the pad token; an encoder's inside one of ours."""
    labels = {
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: number for number, name in enumerate(label_names)},
        "pad_token_id": tokenizer.pad_token_id,
        "problem_type": "single_label_classification",
    }
    own = cast(PretrainedConfig, module.backbone.config).to_dict()
    own.pop("_name_or_path", None)  # a folder of this machine
    if module.pooling == "mean":
        return MeanPooledConfig(backbone=own, **labels)
    return type(cast(PretrainedConfig, module.backbone.config)).from_dict(own | labels)
