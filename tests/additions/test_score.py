"""A score of one's own is a function in any importable module; an arm's YAML names it by its path."""

import pytest
import torch

from influence_masking import Mask
from modules.backbone import load_backbone

MODULE = '''
from torch import Tensor


def largest(theta: Tensor, grad: Tensor) -> Tensor:
    """Returns -theta, so that the lowest scores are the largest weights."""
    return -theta
'''

ARM = """
arm:
  name: largest
  role: mask
  starts_from: baseline
model:
  class_path: modules.Influence
  init_args:
    masking:
      fraction: 0.05
      score: my_scores.largest
    tune: none
"""


@pytest.mark.slow
def test_a_function_of_a_module_of_ones_own_is_a_score(influence, tiny_qwen, data_cache, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_scores.py").write_text(MODULE)
    (tmp_path / "largest.yaml").write_text(ARM)
    monkeypatch.syspath_prepend(tmp_path)
    grid = ["--datasets", "docstrings", "--arms", "largest.yaml", "--backbone", tiny_qwen, "--name", "own", "--quick"]
    sets = [f"data.cache_dir={data_cache}", "trainer.accelerator=cpu"]
    assert influence("experiment", *grid, "--set", *sets) == 0
    assert influence("report", "--results", "outputs/own-quick") == 0
    assert "largest" in capsys.readouterr().out

    mask = Mask.load(tmp_path / "outputs" / "own-quick" / "docstrings" / "largest" / "seed0" / "mask.safetensors")
    assert mask.provenance["score"] == "my_scores.largest"
    weights = dict(load_backbone(tiny_qwen).named_parameters(prefix="backbone"))
    selected = torch.cat([weights[name][mask.flags(name)] for name in mask.shapes])
    others = torch.cat([weights[name][~mask.flags(name)] for name in mask.shapes])
    assert len(selected) == mask.num_masked > 0
    assert selected.min() >= others.max()
