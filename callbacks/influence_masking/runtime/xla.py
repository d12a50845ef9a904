"""XLA, which records operations and compiles what it has recorded when it is asked to run."""

import torch


def run_pending(device: torch.device) -> None:
    """Run what XLA has recorded so far; do nothing on other devices.

    Without it all micro-batches become one large program, and what a hook leaves for later makes another program of
    the next training step.
    """
    if device.type == "xla":
        import torch_xla

        torch_xla.sync()
