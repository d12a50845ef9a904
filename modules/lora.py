"""Arm C: low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685) by peft, and the head."""

from typing import Any

from peft import LoraConfig, get_peft_model

from modules.classifier import Classifier
from modules.errors import OptionError


class LoRA(Classifier):
    """Trains rank-`rank` adapters on every attention and MLP projection, and the head.

    Args:
        rank: Rank of the adapters.
        alpha: Adapters are scaled by `alpha / rank`.
        dropout: Dropout in front of each adapter.
        **kwargs: As `Classifier`.

    Raises:
        OptionError: If an option is out of its range.
    """

    trains = "adapter"

    def __init__(self, *, rank: int = 8, alpha: int = 16, dropout: float = 0.0, **kwargs: Any) -> None:
        if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
            raise OptionError(
                "rank must be at least 1, alpha positive and dropout in [0, 1), "
                f"found {rank}, {alpha} and {dropout}. See --model.help LoRA"
            )
        self.lora = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear")
        super().__init__(**kwargs)

    def identity(self) -> dict[str, Any]:
        """Adds the shape and the scale of the adapters."""
        return super().identity() | {"rank": self.lora.r, "alpha": self.lora.lora_alpha}

    def adapt(self) -> None:
        """Wraps the backbone: its own weights freeze, the adapters train."""
        self.backbone = get_peft_model(self.backbone, self.lora)
