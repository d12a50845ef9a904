"""What the ranks of a distributed run tell each other: sums of small tensors and short lists."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


class Processes:
    """The processes that take part, or this one alone.

    Args:
        group: Their group; None stands for this process alone.
        device: Where the group's tensors must be.
    """

    def __init__(self, group: ProcessGroup | None = None, device: torch.device | str = "cpu") -> None:
        self._group = group
        self._device = torch.device(device)
        self.count = dist.get_world_size(group) if group else 1
        self.rank = dist.get_rank(group) if group else 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Returns the sum over the processes, in the tensor's own memory if it lies on the group's device."""
        if self._group is None:
            return tensor
        moved = tensor.to(self._device)
        dist.all_reduce(moved, group=self._group)
        return moved.to(tensor.device)

    def gather(self, value: Any) -> list[Any]:
        """Returns every process's value, which must be small and picklable, in the order of the ranks."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self._group)
        return values


ALONE = Processes()
