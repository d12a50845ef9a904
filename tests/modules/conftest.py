from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from datamodules import Docstrings
from modules import Caches, Classifier


@pytest.fixture
def with_head() -> Callable[..., Classifier]:
    """Give a module a head of random weights and constants, as if it were trained: a new one gives logits of zero."""

    def fill(module: Classifier, seed: int = 0) -> Classifier:
        generator = torch.Generator().manual_seed(seed)
        module.head.condition(torch.randn(20, module.head.in_features, generator=generator))
        for parameter in module.head.parameters():
            parameter.data.normal_(std=0.1, generator=generator)
        return module

    return fill


@pytest.fixture
def docstrings(tiny_qwen: str, data_cache: Path) -> Callable[..., Docstrings]:
    """Make datamodules of 50 rows a split."""

    def make(**options: object) -> Docstrings:
        sizes = {f"{split}_size": 50 for split in ("head_init", "train", "dev", "eval")}
        return Docstrings(**{"tokenizer": tiny_qwen, "cache_dir": data_cache, **sizes, **options})

    return make


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """Make Trainers that leave nothing but what a module itself writes, in an empty folder."""
    quiet: dict = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    quiet |= {"num_sanity_val_steps": 0, "accelerator": "cpu", "default_root_dir": tmp_path}
    return lambda **options: Trainer(**(quiet | options))


@pytest.fixture
def caches() -> Caches:
    """Those of one process, for modules that share them."""
    return Caches()


@pytest.fixture
def backbone_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[LightningModule], list[int]]:
    """Count, in the list that it returns, the rows of each call of a module's backbone; there is no first look."""
    monkeypatch.setattr("modules.first_look.look", lambda trainer, module: None)

    def count(module: LightningModule) -> list[int]:
        calls: list[int] = []
        module.backbone.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        return calls

    return count
