"""A module's `training_step`, called outside the training loop for its loss."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from influence_masking.errors import MaskingError


def training_loss(module: LightningModule, batch: Any, batch_idx: int) -> Tensor:
    """Return the loss that a training step computes.

    With manual optimization it is the loss passed to `manual_backward`; optimizers and schedulers are replaced by
    objects that accept every call and do nothing.

    Raises:
        MaskingError: If the step has no loss, or, with manual optimization, more than one.
    """
    takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    arguments = [batch, batch_idx] if takes_index else [batch]
    if not module.automatic_optimization:
        return _manual_loss(module, arguments)
    output = module.training_step(*arguments)
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise _no_loss(module, f"{type(output).__name__} returned by training_step")
    return loss


@contextlib.contextmanager
def muted(module: LightningModule) -> Iterator[None]:
    """Make `log` and `log_dict` do nothing: outside the training loop they raise."""
    with _replaced(module, log=_nothing, log_dict=_nothing):
        yield


class _DoNothing:
    """An optimizer or scheduler whose methods accept everything and do nothing."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing

    def step(self, closure: Callable[[], Any] | None = None, **_: Any) -> Any:
        """Run the closure, which may be where a training step computes its loss."""
        return closure() if closure else None

    def toggle_model(self, *_: Any, **__: Any) -> contextlib.nullcontext[None]:
        """Toggle nothing."""
        return contextlib.nullcontext()


def _manual_loss(module: LightningModule, arguments: list[Any]) -> Tensor:
    losses: list[Tensor] = []

    def keep(loss: Tensor, *_: Any, **__: Any) -> None:
        losses.append(loss)

    optimizers, schedulers = module.optimizers(), module.lr_schedulers()
    stand_ins = {
        "manual_backward": keep,
        "optimizers": lambda *_, **__: _stand_ins_for(optimizers),
        "lr_schedulers": lambda: _stand_ins_for(schedulers),
        "clip_gradients": _nothing,
        "toggle_optimizer": _nothing,
        "untoggle_optimizer": _nothing,
    }
    with _replaced(module, **stand_ins):
        module.training_step(*arguments)
    if len(losses) != 1:
        raise _no_loss(module, f"{len(losses)} calls of manual_backward in training_step")
    return losses[0]


def _stand_ins_for(originals: Any) -> Any:
    if originals is None:
        return None
    return [_DoNothing() for _ in originals] if isinstance(originals, list) else _DoNothing()


@contextlib.contextmanager
def _replaced(module: LightningModule, **attributes: Any) -> Iterator[None]:
    """Set attributes of the instance inside, then restore them."""
    own = module.__dict__  # not setattr, which would register a module or a parameter
    before = {name: own[name] for name in attributes if name in own}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            own.pop(name, None)
        own.update(before)


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _no_loss(module: LightningModule, found: str) -> MaskingError:
    return MaskingError(
        f"{type(module).__name__} gives no loss for the gradient: found {found}. Override "
        "`InfluenceMasking.compute_loss(module, batch, batch_idx)` to return the loss as a tensor."
    )
