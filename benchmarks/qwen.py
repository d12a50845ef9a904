"""The true shape of Qwen2-0.5B with random weights, made in the process, and batches of tokens for the benchmarks."""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2Model

CONFIG = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}


class QwenClassifier(LightningModule):
    """The backbone without its LM head and a linear head; embeddings are frozen to leave room for the optimizer."""

    def __init__(self, layers: int = 24) -> None:
        super().__init__()
        self.backbone = Qwen2Model(Qwen2Config(**CONFIG | {"num_hidden_layers": layers}))
        self.head = nn.Linear(896, 2)
        self.backbone.embed_tokens.requires_grad_(False)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        tokens, labels = batch
        hidden = self.backbone(input_ids=tokens, use_cache=False).last_hidden_state[:, -1]
        return nn.functional.cross_entropy(self.head(hidden), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-5)


def batches(count: int, samples: int, length: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches of random tokens of shape (samples, length) and random labels."""
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randint(CONFIG["vocab_size"], (samples, length), generator=generator),
            torch.randint(2, (samples,), generator=generator),
        )
        for _ in range(count)
    ]
