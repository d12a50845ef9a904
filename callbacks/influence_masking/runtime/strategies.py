"""The ways of training that a mask has been tested under."""

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy
from torch.distributed import group

from influence_masking.errors import MaskingError
from influence_masking.runtime.processes import ALONE, Processes

TESTED = ("SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy", "SingleDeviceXLAStrategy")


def check_strategy(strategy: Strategy) -> None:
    """Raises a `MaskingError` that names the tested strategies, unless this is one of them."""
    name = type(strategy).__name__
    if name not in TESTED:
        raise MaskingError(
            f"Asked to mask under {name}, found that it is not among the strategies this was tested with: "
            f"{', '.join(TESTED)}. Choose one of them (`Trainer(strategy=...)`)."
        )


def gradient_processes(trainer: Trainer) -> Processes:
    """Returns the processes that divide the calibration data between them.

    Under DDP these are all. Under `ModelParallelStrategy` every process sees every batch, as tensor parallelism needs
    anyway: the mean over processes that sharding takes is then one of equal gradients, exact for 2, 4, 8, ... of them.
    """
    if type(trainer.strategy).__name__ != "DDPStrategy" or trainer.world_size == 1:
        return ALONE
    return Processes(group.WORLD, trainer.strategy.root_device)
