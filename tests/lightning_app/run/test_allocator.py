import resource
import subprocess
import sys

import pytest

from lightning_app.run.allocator import keep_freed_memory

ALLOCATE = """
import resource, sys, torch
from lightning_app.run.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(2):
    torch.ones(20_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library has no mallopt")
def test_a_large_tensor_takes_the_pages_of_one_that_was_freed():
    pages = 5 * 80_000_000 // resource.getpagesize()
    faults = {
        way: int(
            subprocess.run([sys.executable, "-c", ALLOCATE, way], capture_output=True, text=True, check=True).stdout
        )
        for way in ("kept", "mapped anew")
    }
    assert faults["kept"] < pages / 10
    assert faults["mapped anew"] > 10 * faults["kept"]
