"""A look before training: a few rows through the model find what cannot run before anything expensive begins."""

from contextlib import nullcontext
from math import inf
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.memory import is_oom_error
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.nn.functional import cross_entropy

from influence_masking.gradients.mean_gradient import calibrating
from modules.errors import BackboneError, OptionError
from modules.features import Batch

SMALL = 1 << 20
"""Gradients are taken of parameters up to this size: a backward pass to these goes through all layers, and the gradient
of a large matrix costs memory and time but finds no other fault."""


class FirstLook(Callback):
    """Read a long row and short rows when a fit begins, the short ones also backward; leave everything as it was.

    Raises:
        BackboneError: If the backbone cannot read the tokens, or its results are not finite.
        OptionError: If `data.max_length` is beyond the backbone's positions.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look here for XLA, while the weights are on the CPU: there, the look would be programs to compile."""
        if stage == "fit" and trainer.strategy.root_device.type == "xla":
            look(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look on the device."""
        if trainer.strategy.root_device.type != "xla":
            look(trainer, pl_module)


def look(trainer: Trainer, pl_module: LightningModule) -> None:
    """Read the example batches of the datamodule, unless an earlier fit with the same caches has read them alike.

    The long row is read forward alone: backward, half a billion weights would take a CPU several seconds.

    Without a `TextDataModule` there are no such batches, and where parameters are sharded they are not read.
    """
    module, datamodule = cast(Any, pl_module), cast(Any, trainer).datamodule
    is_whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    if not (is_whole and hasattr(datamodule, "example_batches")):
        return
    full, short = datamodule.example_batches()
    _check_tokens(module, full["input_ids"].shape[1], max(int(batch["input_ids"].max()) for batch in (full, short)))
    trained = {name: each for name, each in module.named_parameters() if each.requires_grad and each.numel() <= SMALL}
    device = module.head.weight.device  # in `setup`, `module.device` names the one that weights will be moved to
    state = (module.backbone_fingerprint, module.pooling, trainer.precision, str(device))
    for batch, wanted in ((full, {}), (short, trained)):
        key = (*state, tuple(batch["input_ids"].shape), tuple(wanted))
        if key not in module.caches.looks:
            _read(trainer, module, {name: values.to(device) for name, values in batch.items()}, wanted)
            module.caches.looks.add(key)


def _check_tokens(module: Any, length: int, largest: int) -> None:
    """Raise an error if rows are too long or have tokens that the backbone does not know.

    A GPU would end the process's use of CUDA at such an index, and XLA would read another row.
    """
    if length > (positions := num_positions(module.backbone)):
        raise OptionError(
            f"data.max_length is {length}, but the backbone {module.backbone_name!r} reads at most {positions} tokens. "
            "Lower data.max_length."
        )
    embedding = module.backbone.get_input_embeddings()
    if isinstance(embedding, nn.Embedding) and largest >= embedding.num_embeddings:
        raise BackboneError(
            f"The tokenizer gives the token {largest}, as padding or in a text, but the embedding of the backbone "
            f"{module.backbone_name!r} has {embedding.num_embeddings} rows. Give a backbone whose tokenizer fits, or "
            "enlarge its embedding by resize_token_embeddings of transformers, and save it."
        )


def num_positions(backbone: Any) -> float:
    """Return how many tokens a backbone reads at most; infinity if it does not say.

    Where a table of positions has a row for padding, positions begin behind that row (RoBERTa and its kind).
    """
    asked = getattr(backbone.config, "max_position_embeddings", None)
    tables = [each for name, each in backbone.named_modules() if "position" in name and isinstance(each, nn.Embedding)]
    behind = [each.num_embeddings - each.padding_idx - 1 for each in tables if each.padding_idx is not None]
    return min([*behind, *([asked] if isinstance(asked, int) and asked > 0 else []), inf])


def _read(trainer: Trainer, module: Any, batch: Batch, wanted: dict[str, nn.Parameter]) -> None:
    """Read a batch forward, and backward to the wanted parameters; leave random state, modes and gradients alone."""
    compiled = torch.compiler.set_stance("force_eager") if module.compiled else nullcontext()
    try:
        with isolate_rng(), calibrating(module, wanted), compiled:
            with trainer.precision_plugin.val_step_context(), torch.set_grad_enabled(bool(wanted)):
                logits = module(batch["input_ids"], batch["attention_mask"])
                loss = cross_entropy(logits, batch["labels"])
            grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True) if wanted else ()
    except Exception as error:  # a model may raise any exception; the cause is kept
        if isinstance(error, MemoryError) or is_oom_error(error):
            raise
        rows, length = batch["input_ids"].shape
        raise BackboneError(
            f"The backbone {module.backbone_name!r} fails on a batch of {rows} x {length} tokens "
            f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0]}). Lower data.max_length if it reads "
            "shorter texts only, or choose another backbone: docs/backbones.md lists those that work."
        ) from error
    for name, values in {"logits": logits, **dict(zip(wanted, grads, strict=True))}.items():
        if values is not None and not values.isfinite().all():
            what = name if name == "logits" else f"a gradient of {name}"
            raise BackboneError(
                f"The backbone {module.backbone_name!r} gives {what} that are NaN or infinite under trainer.precision "
                f"{trainer.precision}, before any training. Set trainer.precision=32-true, or choose another backbone."
            )
