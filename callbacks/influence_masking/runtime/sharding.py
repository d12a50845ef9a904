"""The part of a parameter on this process: all of it, or under FSDP2 a block of rows."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Shard

from influence_masking.errors import MaskingError


class LocalPart(NamedTuple):
    """The elements of a tensor on this process, a view of the tensor's memory.

    Attributes:
        tensor: A block of rows, or all of them.
        start: Number of elements of the whole tensor before the block, in row-major order.
    """

    tensor: Tensor
    start: int

    def cut(self, whole: Tensor) -> Tensor:
        """Return the same block of an unsharded tensor of the same shape."""
        return whole.reshape(-1)[self.start : self.start + self.tensor.numel()].view(self.tensor.shape)


@torch.no_grad()
def local_part(name: str, tensor: Tensor) -> LocalPart:
    """Return the local block of a parameter or of its gradient; writing to it writes to the parameter.

    Raises:
        MaskingError: If the tensor is sharded in any way but by rows over one mesh dimension.
    """
    if not isinstance(tensor, DTensor):
        return LocalPart(tensor.detach(), 0)
    mesh, placements = tensor.device_mesh, tensor.placements
    if mesh.ndim != 1 or not isinstance(placements[0], Shard) or placements[0].dim != 0:
        raise MaskingError(
            f"{name} is sharded in an untested way: placements {placements} on a mesh of {mesh.ndim} dimensions. Shard "
            "it by rows over one mesh dimension, as `fully_shard` does."
        )
    # as `torch.chunk` cuts: the last processes may have fewer rows or none
    rows = -(-tensor.shape[0] // mesh.size())
    first_row = min(mesh.get_local_rank() * rows, tensor.shape[0])
    return LocalPart(tensor.to_local().detach(), first_row * math.prod(tensor.shape[1:]))


def sharding_group(tensors: list[Tensor]) -> ProcessGroup | None:
    """Return the processes that the tensors are sharded over; None if no tensor is sharded."""
    groups = {t.device_mesh.get_group() for t in tensors if isinstance(t, DTensor)}
    if len(groups) > 1:
        raise MaskingError(
            f"The candidates are sharded over {len(groups)} different meshes. Shard them over one mesh, or use one "
            "callback per mesh."
        )
    return groups.pop() if groups else None
