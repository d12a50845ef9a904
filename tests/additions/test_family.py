"""A backbone family is a row of `FAMILIES`: a model whose weights have unknown names is refused without one."""

import re
from dataclasses import replace

import pytest
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, Qwen2Config, Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from influence_masking import Mask
from modules.families import DECODER, FAMILIES


class FoldedConfig(Qwen2Config):
    model_type = "folded"


class FoldedLayer(Qwen2DecoderLayer):
    """A block with one more matrix, whose name does not say what it is."""

    def __init__(self, config: FoldedConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.fold = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        states = super().forward(*args, **kwargs)
        return states + self.fold(states)


class FoldedModel(Qwen2Model):
    config_class = FoldedConfig

    def __init__(self, config: FoldedConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(FoldedLayer(config, index) for index in range(config.num_hidden_layers))
        self.post_init()


@pytest.fixture
def folded(tiny_qwen, tmp_path):
    """Folder of a tiny model of a type that transformers and the table do not know."""
    AutoConfig.register("folded", FoldedConfig, exist_ok=True)
    AutoModel.register(FoldedConfig, FoldedModel, exist_ok=True)
    config = FoldedConfig(**{**AutoConfig.from_pretrained(tiny_qwen).to_dict(), "model_type": "folded"})
    FoldedModel(config).save_pretrained(tmp_path / "folded")
    AutoTokenizer.from_pretrained(tiny_qwen).save_pretrained(tmp_path / "folded")
    return str(tmp_path / "folded")


@pytest.mark.slow
def test_a_row_makes_the_weights_of_a_new_family_candidates(
    influence, folded, data_cache, tmp_path, monkeypatch, capsys
):
    grid = ["--datasets", "docstrings", "--arms", "influence", "--backbone", folded, "--name", "own", "--quick"]
    sets = [f"data.cache_dir={data_cache}", "trainer.accelerator=cpu"]
    assert influence("experiment", *grid, "--set", *sets) != 0
    assert re.search(r"fold\.weight.*--model\.targets", capsys.readouterr().err, re.DOTALL)

    monkeypatch.setitem(FAMILIES, "folded", replace(DECODER, candidates=r"fold\.weight"))
    assert influence("experiment", *grid, "--set", *sets) == 0
    assert influence("report", "--results", "outputs/own-quick") == 0
    mask = Mask.load(tmp_path / "outputs" / "own-quick" / "docstrings" / "influence" / "seed0" / "mask.safetensors")
    assert "backbone.layers.0.fold.weight" in mask.shapes
    assert "backbone.layers.0.self_attn.q_proj.weight" in mask.shapes
