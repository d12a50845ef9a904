"""What the ranks of a distributed run tell each other: sums of tensors, and nothing that needs pickle."""

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

    def gather(self, values: Tensor) -> list[Tensor]:
        """Returns every process's values, a flat tensor of any length, in the order of the ranks.

        Each process adds its values to zeros at a place of its own, so that one sum carries them all.
        """
        lengths = torch.zeros(self.count, dtype=torch.int64)
        lengths[self.rank] = len(values)
        lengths = self.sum(lengths)
        everyone = values.new_zeros(int(lengths.sum()))
        everyone[int(lengths[: self.rank].sum()) :][: len(values)] = values
        return list(self.sum(everyone).split(lengths.tolist()))


ALONE = Processes()
