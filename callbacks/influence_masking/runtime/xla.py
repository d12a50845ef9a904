"""XLA records operations, then compiles and runs them together."""

import torch


def run_pending(device: torch.device) -> None:
    """Run what XLA has recorded so far; do nothing on other devices.

    Otherwise all micro-batches become one large program, and operations that a hook leaves pending become part of the
    next training step, which is then compiled again.
    """
    if device.type == "xla":
        import torch_xla

        torch_xla.sync()
