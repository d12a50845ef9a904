"""Packed bits: one bit per weight, the first weight in the highest bit of a byte (as `numpy.packbits`)."""

import numpy as np
import torch
from torch import Tensor

# Eight bytes of 0 or 1, read as one little-endian integer, times this constant: the highest byte of the product is
# their bits, the first byte's bit highest.
_GATHER = 0x8040201008040201 - (1 << 64)
_BIT_VALUES = (128, 64, 32, 16, 8, 4, 2, 1)


def pack(flags: Tensor) -> Tensor:
    """Pack a flat bool tensor of n elements into ceil(n / 8) bytes; the bits past the end are 0."""
    if flags.device.type == "cpu":
        return torch.from_numpy(np.packbits(flags.numpy()))
    padded = torch.nn.functional.pad(flags, (0, -flags.numel() % 8))
    return padded.view(torch.int64).mul(_GATHER).bitwise_right_shift_(56).to(torch.uint8)


def unpack(packed: Tensor, count: int) -> Tensor:
    """Return the first `count` bits as a flat bool tensor on the device of `packed`."""
    values = torch.tensor(_BIT_VALUES, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-1) & values).ne(0).view(-1)[:count]


def places(flags: Tensor) -> Tensor:
    """Return the indices where a flat bool tensor is true, int64, ascending; on the CPU numpy is faster."""
    if flags.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(flags.numpy()))
    return flags.nonzero().squeeze(1)


def count_true(flags: Tensor) -> int:
    """Return the number of true elements of a bool tensor."""
    return int(np.count_nonzero(flags.numpy()) if flags.device.type == "cpu" else flags.count_nonzero())


def count_ones(packed: Tensor) -> int:
    """Return the number of bits that are 1, without unpacking."""
    words = torch.cat([packed, packed.new_zeros(-packed.numel() % 8)]).view(torch.int64)
    return sum(int(_popcount(piece).sum()) for piece in words.split(1 << 18))


def _popcount(x: Tensor) -> Tensor:
    """Count the ones of each int64 by summing neighboring bits (Warren, "Hacker's Delight", figure 5-2)."""
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return (x * 0x0101010101010101) >> 56
