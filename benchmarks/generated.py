"""What a machine without a network needs for the benchmarks: a Qwen2 of random weights, and texts of given lengths.

    python benchmarks/generated.py     # prints the table of lengths again; needs the Hub

LENGTHS was printed by that command: quantiles of the tokens a row, 0 to 100 % in steps of 5, for the splits of seed 0
at the shipped `max_length`. Tokens are those of all-MiniLM-L6-v2 (30,522 word pieces, and two special tokens a row),
because Qwen2's tokenizer was not at hand. The rows came from sub-samples of the published ones; no published test rows
of Yelp were among them, so its eval is given the lengths of its train.
"""

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2Model

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "callbacks"))

from qwen import CONFIG

from datamodules import TextDataModule

LENGTHS = {
    "sst2": {
        "train": (3, 4, 4, 5, 5, 6, 7, 7, 8, 9, 10, 11, 12, 14, 16, 18, 19, 22, 26, 32, 58),
        "eval": (4, 10, 12, 14, 16, 17, 19, 20, 21, 23, 25, 26, 27, 29, 30, 32, 34, 37, 40, 44, 55),
    },
    "agnews": {
        "train": (19, 30, 35, 38, 41, 42, 45, 47, 48, 50, 51, 53, 55, 56, 58, 60, 63, 66, 72, 86, 128),
        "eval": (18, 31, 36, 38, 41, 43, 44, 46, 47, 49, 50, 52, 54, 55, 57, 59, 62, 65, 69, 79, 128),
    },
    "dbpedia": {
        "train": (16, 25, 30, 35, 39, 44, 48, 53, 57, 62, 68, 72, 79, 83, 87, 92, 97, 101, 107, 114, 128),
        "eval": (11, 26, 32, 36, 40, 45, 50, 55, 60, 64, 69, 74, 79, 84, 88, 92, 97, 101, 107, 114, 128),
    },
    "yelp": {
        "train": (6, 28, 34, 39, 45, 50, 56, 62, 67, 72, 79, 85, 90, 96, 104, 112, 123, 137, 193, 256, 256),
        "eval": (6, 28, 34, 39, 45, 50, 56, 62, 67, 72, 79, 85, 90, 96, 104, 112, 123, 137, 193, 256, 256),
    },
}
EVAL_ROWS = {"sst2": 872, "agnews": 7_600, "dbpedia": 70_000, "yelp": 50_000}
CLASSES = {"sst2": 2, "agnews": 4, "dbpedia": 14, "yelp": 5}
MAX_LENGTHS = {"sst2": 128, "agnews": 128, "dbpedia": 128, "yelp": 256}
SIZES: dict[str, dict[str, Any]] = {
    "qwen2-0.5b": CONFIG,
    "tiny": CONFIG
    | {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 2_048,
    },
}
WORDS = 2_000
WORD_TOKENIZER = "words"  # a folder of its own: beside a Qwen2's config.json, AutoTokenizer takes its own kind for it
SPARE = 1.5  # rows to draw from, for each that is drawn


class GeneratedText(TextDataModule):
    """Rows of random words, one token each, with the lengths and the number of classes of a data set.

    Args:
        tokenizer: Folder that `make_model` wrote.
        like: The data set.
        eval_rows: Rows of eval; None takes as many as the data set has.
        **kwargs: As `TextDataModule`.
    """

    eval_split_name = "generated"

    def __init__(self, tokenizer: str, like: str = "sst2", eval_rows: int | None = None, **kwargs: Any) -> None:
        self.name = like
        self.label_names = [str(number) for number in range(CLASSES[like])]
        self.eval_rows = eval_rows or EVAL_ROWS[like]
        super().__init__(str(Path(tokenizer) / WORD_TOKENIZER), **kwargs)

    def load_source(self) -> tuple[pa.Table, pa.Table]:
        """Return tables that are the same on every machine."""
        drawn = self.sizes.head_init + self.sizes.train + self.sizes.dev
        return self._table("train", int(SPARE * drawn) + 10 * CLASSES[self.name]), self._table("eval", self.eval_rows)

    def _table(self, split: str, rows: int) -> pa.Table:
        rng = random.Random(f"{self.name}/{split}")
        quantiles = LENGTHS[self.name][split]
        lengths = np.interp((np.arange(rows) + 0.5) / rows, np.linspace(0, 1, len(quantiles)), quantiles).round()
        rng.shuffle(lengths)
        texts = [" ".join(f"w{rng.randrange(WORDS)}" for _ in range(int(length))) for length in lengths]
        labels = np.arange(rows) % CLASSES[self.name]
        return pa.table({"row": np.arange(rows), "text": texts, "label": labels})


def make_model(folder: Path, size: str, layers: int | None = None) -> str:
    """Write a Qwen2 of random weights in bfloat16, as the published one is, and a tokenizer of whole words."""
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<eos>", *(f"w{n}" for n in range(WORDS))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")
    fast.save_pretrained(folder / WORD_TOKENIZER)
    config = SIZES[size] | ({"num_hidden_layers": layers} if layers else {})
    torch.manual_seed(0)
    Qwen2Model(Qwen2Config(**config, pad_token_id=1)).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Print `LENGTHS` and means."""
    from lightning_app.run.cli import PrepareData
    from lightning_app.run.configs import config_file, configs_folder
    from modules.backbone import EMBEDDED_NAME

    for name in LENGTHS:
        configs = [configs_folder() / "base.yaml", config_file("data", name), config_file("arms", "full_ft")]
        words = [word for path in configs for word in ("-c", str(path))]
        data = PrepareData([*words, f"--model.backbone={EMBEDDED_NAME}"]).datamodule
        for split in ("train", "eval"):
            lengths = torch.tensor(data._rows[split].lengths, dtype=torch.float)
            quantiles = torch.quantile(lengths, torch.linspace(0, 1, 21), interpolation="nearest").int().tolist()
            print(name, split, f"{len(lengths)} rows, mean {lengths.mean():.1f}:", tuple(quantiles))


if __name__ == "__main__":
    main()
