"""Private names of other packages: each use is in a table with its reason, and still is what we use it as.

A name with one underscore in front may change in any version without notice. Uses are read from the source: attributes
that nothing of ours defines, imports, and methods of ours that override a private one.
"""

import argparse
import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.plugins.io import CheckpointIO, wrapper
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy
from transformers.integrations.peft import PeftAdapterMixin

ROOT = Path(__file__).parents[2]
PACKAGES = {"lightning_app": ROOT, "modules": ROOT, "datamodules": ROOT, "influence_masking": ROOT / "callbacks"}

PUBLIC = {
    "_asdict": "a documented method of named tuples",
    "_fields": "a documented attribute of named tuples",
    "_exit": "a documented function of os",
}
"""Names that are public in spite of their underscore."""

PRIVATE = {
    (
        "_actions",
        "completion",
    ): "an option's choices are set after it was added",
    ("_parse_ckpt_path", "run.cli"): "LightningCLI would let a checkpoint choose the class of the model",
    ("_load_combined_loader_states", "run.checkpoints"): "Lightning skips it in a fit that resumes within an epoch",
    ("_dynamo", "backbone"): "torch.compiler.config has no recompile_limit in torch 2.9, which TPUs need",
    ("_WrappingCheckpointIO", "checkpoints"): "strategies for XLA accept no other wrapper",
    ("_step_supports_amp_scaling", "classifier"): "nothing else lets a fused AdamW clip in bf16-mixed",
    ("_version", "arithmetic"): "nothing else tells that a tensor has changed; autograd's own check reads it",
    ("_hf_peft_config_loaded", "backbone"): "nothing else tells that transformers has added an adapter to a model",
    ("_trainer", "classifier"): "`trainer` raises without a Trainer, and an export has none",
    ("_data_source", "gradients.loaders"): "nothing else has a dataloader that was passed to `Trainer.fit`",
    ("_on_before_batch_transfer", "trainer_data"): "it picks the hook of the datamodule or of the module",
    ("_generate_state_key", "callback"): "the way that Lightning documents for a callback's `state_key`",
}
"""Each private name of another package, the module of ours that uses it, and why."""


def private_uses() -> set[tuple[str, str]]:
    """Every private name of another package with the module that uses it, without the name of its package."""
    files = {package: sorted((folder / package).rglob("*.py")) for package, folder in PACKAGES.items()}
    trees = {path: ast.parse(path.read_text()) for paths in files.values() for path in paths}
    ours = {name for tree in trees.values() for name in defined_names(tree)}
    uses = set()
    for package, folder in PACKAGES.items():
        for path in files[package]:
            module = ".".join(path.relative_to(folder / package).with_suffix("").parts)
            uses |= {(name, module) for name in used_names(trees[path]) if name not in ours}
            uses |= {(name, module) for name in overrides(import_path(path, folder))}
    return uses


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and len(name) > 1


def defined_names(tree: ast.Module) -> Iterator[str]:
    """Private names that a module defines: functions, classes, variables, and attributes of `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def used_names(tree: ast.Module) -> Iterator[str]:
    """Private names that a module reads or sets as attributes, by their name in a text as well, or imports."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [part for alias in node.names for part in alias.name.split(".")]
            names += (getattr(node, "module", None) or "").split(".")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            names = [node.args[1].value] if isinstance(node.args[1], ast.Constant) else []
        yield from filter(is_private, names)


def import_path(path: Path, folder: Path) -> Any:
    parts = path.relative_to(folder).with_suffix("").parts
    return None if parts[-1] == "__main__" else import_module(".".join(parts).removesuffix(".__init__"))


def overrides(module: Any) -> Iterator[str]:
    """Private names of other packages' classes that classes of a module define again."""
    for kind in vars(module).values() if module else ():
        if inspect.isclass(kind) and kind.__module__ == module.__name__:
            others = [base for base in kind.__mro__[1:] if base.__module__.partition(".")[0] not in PACKAGES]
            methods = [name for name, value in vars(kind).items() if is_private(name) and inspect.isfunction(value)]
            yield from (name for name in methods if any(name in vars(base) for base in others))


def test_every_private_name_of_another_package_is_in_the_table():
    assert {use for use in private_uses() if use[0] not in PUBLIC} == PRIVATE.keys()


def test_no_reason_is_for_a_public_name_that_is_not_used():
    assert PUBLIC.keys() <= {name for name, _ in private_uses()}


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (LightningCLI._parse_ckpt_path, ["self"]),
        (_FitLoop._load_combined_loader_states, ["self"]),
        (LightningModule._on_before_batch_transfer, ["self", "batch", "dataloader_idx"]),
        (Callback._generate_state_key, ["self", "kwargs"]),
    ],
)
def test_a_private_method_takes_what_it_is_given(function, expected):
    assert parameters(function) == expected


def test_lightning_calls_what_is_overridden():
    assert "self._parse_ckpt_path()" in inspect.getsource(LightningCLI.__init__)


def test_lightning_runs_a_method_of_the_command_line_in_place_of_that_of_the_trainer():
    assert "getattr(self, subcommand, default)" in inspect.getsource(LightningCLI._run_subcommand)


def test_the_fit_loop_has_its_source_of_data():
    source = Trainer(logger=False, enable_checkpointing=False).fit_loop._data_source
    assert parameters(source.is_defined) == parameters(source.dataloader) == []


def test_a_module_has_no_trainer_before_it_has_one():
    assert LightningModule()._trainer is None


def test_transformers_notes_that_it_has_added_an_adapter():
    assert "self._hf_peft_config_loaded = True" in inspect.getsource(PeftAdapterMixin)


def test_a_parser_lists_its_actions():
    parser = argparse.ArgumentParser(add_help=False)
    action = parser.add_argument("--name")
    assert parser._actions == [action]
    assert (action.dest, action.choices) == ("name", None)


def test_a_fused_optimizer_announces_that_it_unscales():
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], fused=True)
    assert optimizer._step_supports_amp_scaling is True


def test_every_write_to_a_tensor_changes_its_version():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    versions = [weight._version]
    with torch.no_grad():
        for write in (
            lambda: weight.add_(1),
            lambda: weight[0].zero_(),
            lambda: weight.view(-1).index_fill_(0, torch.tensor([1]), 0),
            lambda: weight.copy_(torch.zeros(3, 3)),
            lambda: torch.nn.Module.load_state_dict(torch.nn.ParameterList([weight]), {"0": torch.ones(3, 3)}),
            lambda: weight.detach().mul_(2),
        ):
            write()
            versions.append(weight._version)
    assert versions == sorted(set(versions))  # but a fused optimizer leaves it: weights that train are not copied


def test_recompilations_have_a_limit():
    assert isinstance(torch._dynamo.config.recompile_limit, int)


def test_strategies_for_xla_accept_the_wrapper_of_checkpoints():
    assert issubclass(wrapper._WrappingCheckpointIO, CheckpointIO)
    assert parameters(wrapper._WrappingCheckpointIO.__init__) == ["self", "checkpoint_io"]
    assert "_WrappingCheckpointIO" in inspect.getsource(SingleDeviceXLAStrategy)
