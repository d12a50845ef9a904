"""Communication between the processes of a distributed run: only sums of tensors, nothing that needs pickle."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


class Ranks:
    """The processes that work together, or only this one.

    Args:
        group: Their process group; None means only this process.
        device: Device that the group's backend needs its tensors on.

    Attributes:
        count: Number of processes.
        rank: Number of this process, from 0.
    """

    def __init__(self, group: ProcessGroup | None = None, device: torch.device | str = "cpu") -> None:
        self._group = group
        self._device = torch.device(device)
        self.count = dist.get_world_size(group) if group else 1
        self.rank = dist.get_rank(group) if group else 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over the processes; it overwrites a tensor that is on the group's device."""
        if self._group is None:
            return tensor
        moved = tensor.to(self._device)
        dist.all_reduce(moved, group=self._group)
        return moved.to(tensor.device)

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return the flat tensors of all processes, of any lengths, in the order of the ranks.

        Each process writes its values into zeros at its own position, so that one sum collects them all.
        """
        lengths = torch.zeros(self.count, dtype=torch.int64)
        lengths[self.rank] = len(values)
        lengths = self.sum(lengths)
        everyone = values.new_zeros(int(lengths.sum()))
        everyone[int(lengths[: self.rank].sum()) :][: len(values)] = values
        return list(self.sum(everyone).split(lengths.tolist()))


SINGLE_PROCESS = Ranks()
