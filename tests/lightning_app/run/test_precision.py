import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator, XLAAccelerator

from lightning_app.run.precision import StudyTrainer, automatic_precision

KINDS = {"tpu": XLAAccelerator, "mps": MPSAccelerator, "cuda": CUDAAccelerator}


@pytest.fixture
def machine(monkeypatch):
    """Pretend to have these accelerators, and a CPU with these instructions."""

    def have(*accelerators, instructions=(), gpu=True):
        for name, kind in KINDS.items():
            monkeypatch.setattr(kind, "is_available", staticmethod(lambda name=name: name in accelerators))
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(instructions, True))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)

    return have


@pytest.mark.parametrize(
    ("accelerators", "instructions", "asked", "precision"),
    [
        ((), ("amx_bf16",), "auto", "bf16-mixed"),
        ((), ("avx512_bf16",), "cpu", "bf16-mixed"),
        ((), ("avx512_f",), "cpu", "32-true"),
        (("cuda",), ("amx_bf16",), "cpu", "bf16-mixed"),
        (("cuda",), (), "auto", "bf16-mixed"),
        (("cuda",), (), "gpu", "bf16-mixed"),
        (("tpu",), ("amx_bf16",), "auto", "32-true"),
        (("tpu",), ("amx_bf16",), "tpu", "32-true"),
        (("mps",), ("amx_bf16",), "gpu", "32-true"),
        (("mps",), ("amx_bf16",), "auto", "32-true"),
    ],
)
def test_the_precision_follows_the_device(accelerators, instructions, asked, precision, machine):
    machine(*accelerators, instructions=instructions)
    assert automatic_precision(asked) == precision


def test_a_gpu_that_only_emulates_bf16_computes_in_float32(machine):
    machine("cuda", gpu=False)
    assert automatic_precision("gpu") == "32-true"


@pytest.mark.parametrize("instructions", [("amx_bf16",), ()])
def test_the_trainer_takes_it_and_leaves_a_named_one(instructions, machine):
    machine(instructions=instructions)
    chosen = StudyTrainer(precision="auto", accelerator="cpu", logger=False).precision
    assert chosen == ("bf16-mixed" if instructions else "32-true")
    assert StudyTrainer(precision="64-true", accelerator="cpu", logger=False).precision == "64-true"
    assert StudyTrainer(accelerator="cpu", logger=False).precision == "32-true"


def test_a_torch_without_the_question_computes_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert automatic_precision("cpu") == "32-true"
