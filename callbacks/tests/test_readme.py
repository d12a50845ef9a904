"""What the README shows, runs."""

import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule
from models import QUIET, Classifier, loader

import influence_masking
from influence_masking import InfluenceMasking, Mask, MaskEnforcer, MaskingOptions

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


class YourModule(Classifier):
    """A foreign project's module."""


class YourDataModule(LightningDataModule):
    def train_dataloader(self):
        return loader(1000)


def test_the_example_runs_on_a_foreign_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.sub(r"from your_project import .*", "", BLOCKS[0])
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    code = code.replace("num_samples=1000", 'num_samples=1000, targets=["0", "3"]')
    code = code.replace("max_epochs=3", "**quiet, max_epochs=3")
    monkeypatch.chdir(tmp_path)
    names = {"YourModule": YourModule, "YourDataModule": YourDataModule, "quiet": QUIET}
    exec(code, names)
    assert Mask.load("mask.safetensors").provenance["model"] == "your model"
    assert names["masking"].num_masked == 32


def test_the_other_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own, sweeping, masks = BLOCKS[1:]
    names = {"InfluenceMasking": InfluenceMasking}
    exec(own, names)
    assert names["masking"].options.score is names["fisher"]
    module = Classifier()
    names = {"module": module, "loader": loader(1000), "loss_of": lambda m, batch: m.net(batch[0]).square().mean()}
    exec(sweeping.replace("num_samples=1000", 'num_samples=1000, targets=["0", "3"]'), names)
    mask = names["snapshot"].select(10)
    mask.save("mask.safetensors")
    exec(masks, {"module": module, "other": mask})
    assert module.net[0].weight[mask.flags("net.0.weight")].eq(0).all()


def test_every_option_and_public_name_is_described() -> None:
    described = InfluenceMasking.__doc__ + MaskingOptions.__doc__ + README
    for name in InfluenceMasking.__init__.__annotations__:
        assert name == "return" or name in described
    for name in influence_masking.__all__:
        assert getattr(influence_masking, name).__doc__ or isinstance(getattr(influence_masking, name), tuple | dict)


def test_holding_in_a_loop_of_ones_own() -> None:
    module = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(module.parameters())
    mask = Mask.from_flags({"weight": torch.eye(4) > 0})
    before = module.weight.detach().clone()
    enforcer = MaskEnforcer(module, mask, "freeze", [optimizer])
    module(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    enforcer.release()
    assert torch.equal(module.weight.diagonal(), before.diagonal())
