"""The true XLA path on XLA's CPU runtime: hooks are bound to the parameters that the move to the device makes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch_xla", reason="needs torch 2.9 with torch_xla 2.9")

HERE = Path(__file__).parent


@pytest.mark.parametrize("action", ["zero", "freeze"])
def test_masked_weights_are_held_on_xla_and_the_mask_is_that_of_the_cpu(action: str) -> None:
    environment = os.environ | {"PJRT_DEVICE": "CPU"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "xla_worker.py"), action]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "all held" in result.stdout
