"""The part of a parameter that this process holds: all of it, or under FSDP2 a block of whole rows."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Shard

from influence_masking.errors import MaskingError


class Local(NamedTuple):
    """The elements of a tensor that this process holds, in the tensor's own memory.

    Attributes:
        tensor: A block of whole rows, or all of them.
        start: How many elements of the whole tensor come before the block, in row-major order.
    """

    tensor: Tensor
    start: int

    def cut(self, whole: Tensor) -> Tensor:
        """Returns the same block of another tensor of the same shape that is held whole."""
        return whole.reshape(-1)[self.start : self.start + self.tensor.numel()].view(self.tensor.shape)


@torch.no_grad()
def local_part(name: str, tensor: Tensor) -> Local:
    """Returns the local block of a parameter or of its gradient; writing to it writes to the parameter.

    Raises:
        MaskingError: If the tensor is sharded in another way than by rows over one mesh dimension.
    """
    if not isinstance(tensor, DTensor):
        return Local(tensor.detach(), 0)
    mesh, placements = tensor.device_mesh, tensor.placements
    if mesh.ndim != 1 or not isinstance(placements[0], Shard) or placements[0].dim != 0:
        raise MaskingError(
            f"Asked to mask {name}, found it placed as {placements} on a mesh of {mesh.ndim} dimensions. Tested is "
            "`fully_shard` over one mesh dimension, which shards rows: (Shard(dim=0),)."
        )
    rows = -(-tensor.shape[0] // mesh.size())  # of every process but the last ones, as torch.chunk cuts
    first_row = min(mesh.get_local_rank() * rows, tensor.shape[0])
    return Local(tensor.to_local().detach(), first_row * math.prod(tensor.shape[1:]))


def sharding_group(tensors: list[Tensor]) -> ProcessGroup | None:
    """Returns the processes over which the tensors are sharded; None when every process holds them whole."""
    groups = {t.device_mesh.get_group() for t in tensors if isinstance(t, DTensor)}
    if len(groups) > 1:
        raise MaskingError(
            f"Asked to mask parameters that are sharded over {len(groups)} different meshes. Shard the candidates over "
            "one mesh, or mask those of each mesh with a callback of their own."
        )
    return groups.pop() if groups else None
