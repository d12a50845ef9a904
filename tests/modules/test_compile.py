from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from modules import FullFineTuning, Influence, LoRA
from modules.backbone import compile_layers


@pytest.fixture(autouse=True)
def without_code_generation(monkeypatch):
    """Capture programs as for a compiler, and run them operator by operator: equal to the bit."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr("modules.classifier.compile_layers", partial(compile_layers, backend="eager"))


def test_a_compiled_arm_is_the_same_to_the_bit_and_keeps_its_names_and_its_mask(
    tiny_qwen, docstrings, trainer, with_head
):
    data, fitted = docstrings(dev_size=14, train_size=48), []
    for compiled in (False, True):
        module = with_head(Influence(backbone=tiny_qwen, num_labels=7, tune="all", compile=compiled))
        trainer(max_epochs=1).fit(module, datamodule=data)
        fitted.append(module)
        assert bool(counters["stats"]) == compiled
    plain, compiled = fitted
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for name, weight in plain.state_dict().items():
        assert torch.equal(compiled.state_dict()[name], weight), name
    assert compiled.masking.mask.digest == plain.masking.mask.digest
    assert not compiled.masking.gradient_shared  # programs may round otherwise


@pytest.mark.parametrize(("kind", "programs"), [(FullFineTuning, 1), (LoRA, 2)])  # frozen inputs differ from the rest
def test_layers_lengths_and_later_models_share_programs(kind, programs, tiny_qwen):
    for _ in range(2):
        module = kind(backbone=tiny_qwen, num_labels=3, compile=True)
        for shape in ((4, 9), (3, 5), (7, 17)):
            module(torch.ones(shape, dtype=torch.long), torch.ones(shape, dtype=torch.long)).sum().backward()
    assert counters["stats"]["unique_graphs"] == programs
