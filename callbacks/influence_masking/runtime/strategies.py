"""The Lightning strategies that masks have been tested under."""

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy
from torch.distributed import group

from influence_masking.errors import MaskingError
from influence_masking.runtime.processes import SINGLE_PROCESS, Ranks

TESTED_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy", "SingleDeviceXLAStrategy")


def check_strategy(strategy: Strategy) -> None:
    """Refuse a strategy that masks have not been tested under.

    Raises:
        MaskingError: If it is not one of `TESTED_STRATEGIES`.
    """
    name = type(strategy).__name__
    if name not in TESTED_STRATEGIES:
        raise MaskingError(
            f"InfluenceMasking has not been tested under {name}. Use one of the tested strategies: "
            f"{', '.join(TESTED_STRATEGIES)} (`Trainer(strategy=...)`)."
        )


def gradient_processes(trainer: Trainer) -> Ranks:
    """Return the processes that divide the calibration data between them.

    Under DDP these are all processes. Under `ModelParallelStrategy` every process takes every batch: FSDP2 averages the
    gradients of the processes, and a mean of equal gradients is exact for 2, 4, 8, ... processes.
    """
    if type(trainer.strategy).__name__ != "DDPStrategy" or trainer.world_size == 1:
        return SINGLE_PROCESS
    return Ranks(group.WORLD, trainer.strategy.root_device)
