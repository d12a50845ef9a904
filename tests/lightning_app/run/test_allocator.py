import subprocess
import sys

import pytest

from lightning_app.run.allocator import keep_freed_memory

pytestmark = pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc")

STEP = """
import resource, sys, torch
from pathlib import Path
from lightning_app.run.allocator import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

torch.ones(1)
if sys.argv[1] == "kept":
    assert keep_freed_memory()
before = resident()
blocks = [torch.ones(6_000_000) for _ in range(4)]
del blocks
print(resident() - before)
"""

MODELS = """
import resource, torch
from pathlib import Path
from lightning_app.run.allocator import keep_freed_memory, return_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

keep_freed_memory()
before, between = resident(), []
for _ in range(20):
    blocks = [torch.ones(6_000_000) for _ in range(2)]
    between.append(blocks[1])
    del blocks
held = resident()
return_freed_memory()
print(held - before, resident() - before, sum(block.nbytes for block in between))
"""


def run(code: str, *words: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return [int(number) for number in done.stdout.split()]


def test_what_a_step_frees_is_kept_for_the_next_step():
    (kept,), (returned,) = run(STEP, "kept"), run(STEP, "returned")
    assert kept > 80_000_000  # of 96
    assert returned < 40_000_000


def test_what_lies_free_between_blocks_is_returned():
    held, left, used = run(MODELS)
    assert left <= held
    assert left < 1.2 * used
