"""Three projects of other people, unchanged, with the callback added to their Trainer."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from models import QUIET

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, **options: Any) -> tuple:
    return load(name).main(**QUIET | options)


def test_digits_are_learnt_with_the_snip_weights_frozen() -> None:
    pytest.importorskip("sklearn")
    model, masking, trainer = run("digits")
    fresh = load("digits")
    torch.manual_seed(0)
    before = dict(fresh.DigitsClassifier().named_parameters())
    assert list(masking.mask.shapes) == ["features.0.weight", "features.1.weight", "head.1.weight", "head.4.weight"]
    assert masking.num_masked == int(0.05 * masking.num_candidates)
    assert trainer.callback_metrics["accuracy"] > 0.85
    for name, parameter in model.named_parameters():
        if name in masking.mask.shapes:
            flags = masking.mask.flags(name)
            assert torch.equal(parameter[flags], before[name][flags])


def test_an_encoder_is_trained_with_the_default_targets_held_at_zero() -> None:
    pytest.importorskip("transformers")
    model, masking, trainer = run("encoder")
    assert len(masking.mask.shapes) == 12
    assert masking.num_masked == int(0.05 * masking.num_candidates)
    assert trainer.callback_metrics["train_accuracy_epoch"] > 0.5
    parameters = dict(model.named_parameters())
    assert all(parameters[name][masking.mask.flags(name)].eq(0).all() for name in masking.mask.shapes)


def test_manual_optimization_is_measured_by_its_own_loss_and_held_within_the_step() -> None:
    model, masking, trainer = run("manual")
    assert masking.num_masked == 200
    assert masking.predicted_change < 0
    assert trainer.callback_metrics["train_loss"] < masking.loss_before
    parameters = dict(model.named_parameters())
    assert all(parameters[name][masking.mask.flags(name)].eq(0).all() for name in masking.mask.shapes)
