"""A sequence classifier that no class of transformers is: an encoder, the mean of its token states, a linear head.

This file lies in the folder of an exported model. It needs torch and transformers alone, reads and writes nothing, and
is run by `AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)`.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPooledConfig(PretrainedConfig):
    """The configuration of the encoder, `backbone`, beside the labels of the classifier."""

    model_type = "mean_pooled_classifier"

    def __init__(self, backbone: dict[str, Any] | PretrainedConfig | None = None, **kwargs: Any) -> None:
        self.backbone: Any = AutoConfig.for_model(**backbone) if isinstance(backbone, dict) else backbone
        super().__init__(**kwargs)


class MeanPooledForSequenceClassification(PreTrainedModel):
    """Logits of a text: a linear function of the mean over the last hidden states of its tokens."""

    config_class = MeanPooledConfig
    base_model_prefix = "backbone"
    _supports_sdpa = True

    def __init__(self, config: MeanPooledConfig) -> None:
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone)
        if getattr(self.backbone, "pooler", None) is not None:
            self.backbone.pooler = None  # it is read by nothing
        self.classifier = nn.Linear(config.backbone.hidden_size, len(config.id2label or ()))
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Return logits [batch, num_labels] for ids and mask [batch, tokens]; with `labels` [batch], the loss as well.

        Pad tokens at the end of a text are padding, whatever the mask says, as in training; the first token never is.
        """
        is_read = (input_ids != self.config.pad_token_id).long().flip(1).cummax(1).values.flip(1)
        is_read[:, 0] = 1
        attention_mask = is_read if attention_mask is None else attention_mask * is_read
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        logits = self.classifier((hidden * weights).sum(1) / weights.sum(1).clamp(min=1))
        loss = None if labels is None else cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
