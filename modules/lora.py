"""Arm C: low-rank adapters (Hu et al. 2021, https://arxiv.org/abs/2106.09685) by peft, and the head."""

from typing import Any, cast

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from influence_masking import find_candidates
from modules.classifier import Classifier
from modules.errors import BackboneError, require


class LoRA(Classifier):
    """Trains rank-`rank` adapters on every attention and MLP projection, and the head.

    Args:
        rank: Rank of the adapters.
        alpha: Adapters are scaled by `alpha / rank`.
        dropout: Dropout in front of each adapter.
        **kwargs: As `Classifier`.

    Raises:
        OptionError: If an option is out of its range.
        BackboneError: As `Classifier`, and if the weights to adapt are not known and not named, or peft cannot adapt
            one of them.
        MaskingError: If `targets` match nothing.
    """

    trains = "adapter"

    def __init__(self, *, rank: int = 8, alpha: int = 16, dropout: float = 0.0, **kwargs: Any) -> None:
        require(rank >= 1, "rank", rank, "1 or more")
        require(alpha > 0, "alpha", alpha, "1 or more")
        require(0 <= dropout < 1, "dropout", dropout, "0 or more, and below 1")
        self.lora = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout)
        super().__init__(**kwargs)

    def checkpoint_identity(self) -> dict[str, Any]:
        """Add the shape and the scale of the adapters."""
        return super().checkpoint_identity() | {"rank": self.lora.r, "alpha": self.lora.lora_alpha}

    def adapt(self) -> None:
        """Wrap the backbone: its own weights freeze, the adapters train."""
        wanted = self._adaptable()
        self.lora.target_modules = wanted
        try:
            self.backbone = get_peft_model(self.backbone, self.lora)
        except ValueError as error:  # of layers whose weights are read past their forward: Mamba's out_proj
            raise self._unfit(str(error).strip().partition("\n")[0]) from error
        # in types that have experts, peft takes the name of a dense layer for that of an expert
        adapted: list[str] = cast(Any, self.backbone).base_model.targeted_module_names
        self._refuse([name for name in wanted if name not in adapted])

    def _adaptable(self) -> list[str]:
        """Return the names, within the backbone, of the modules that hold the candidates."""
        adaptable: list[str] = []
        others: list[str] = []
        for name in find_candidates(self, self.candidate_targets()):
            path, _, kind = name.rpartition(".")
            module = self.get_submodule(path)
            fits = kind == "weight" and isinstance(module, nn.Linear | Conv1D) and path.startswith("backbone.")
            (adaptable if fits else others).append(path.removeprefix("backbone.") if fits else name)
        self._refuse(others)
        return adaptable

    def _refuse(self, names: list[str]) -> None:
        if names:
            raise self._unfit(f"{names[:5]} ({len(names)} in all) are not linear layers that it finds.")

    def _unfit(self, fault: str) -> BackboneError:
        return BackboneError(
            f"peft cannot adapt the backbone {self.backbone_name!r}: {fault} Name the linear layers to adapt: "
            "--model.targets, a list of name endings."
        )
