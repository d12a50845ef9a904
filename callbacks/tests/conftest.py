import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "gradients"), str(HERE / "selection")]  # tests share helpers


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # small tensors: threads only wait for each other
    torch.manual_seed(0)
