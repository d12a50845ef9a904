import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoTokenizer

from datamodules import DataError, TextDataModule

REPOSITORY = Path(__file__).parents[2]


class Recorder(LightningModule):
    """Learns nothing and writes down the rows that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.trained: list[list[int]] = []
        self.validated: list[int] = []

    def training_step(self, batch, batch_idx):
        self.trained.append(batch["row"].tolist())
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self.validated += batch["row"].tolist()

    def test_step(self, batch, batch_idx):
        self.validated += batch["row"].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(**kwargs) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", **{**quiet, "enable_checkpointing": False, **kwargs})


def rows_of(loader) -> list[int]:
    return [row for batch in loader for row in batch["row"].tolist()]


def split_rows(module: TextDataModule) -> dict[str, list[int]]:
    return {split: sorted(rows_of(module.ordered_dataloader(split))) for split in module.split_sizes}


def padding(loader) -> float:
    masks = [batch["attention_mask"] for batch in loader]
    return 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks)


def test_setup_gives_the_sizes_asked_for_and_a_fingerprint(make_toy):
    module = make_toy()
    assert module.num_labels == 3
    assert module.split_sizes == {"head_init": 50, "train": 200, "dev": 60, "eval": 100}
    assert len(bytes.fromhex(module.fingerprint)) == 32


def test_the_fingerprint_depends_on_seed_sizes_and_content_but_not_on_batches(toy_class, make_toy, monkeypatch):
    first = make_toy().fingerprint
    assert make_toy(batch_size=4, max_length=8, train_on="head_init").fingerprint == first
    assert len({first, make_toy(seed=1).fingerprint, make_toy(train_size=100).fingerprint}) == 3
    pool, held_out = make_toy().load_source()
    monkeypatch.setattr(toy_class, "load_source", lambda self: (pool.slice(1), held_out))
    assert make_toy().fingerprint != first


def test_a_batch_holds_the_tokens_and_the_label_of_its_source_row(make_toy, tokenizer_folder):
    module = make_toy(max_length=20)
    pool, _ = module.load_source()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    for batch in module.train_dataloader():
        for ids, mask, label, row in zip(*(batch[name] for name in batch), strict=True):
            text = pool.column("text")[row.item()].as_py()
            assert ids[mask.bool()].tolist() == tokenizer(text)["input_ids"][:20]
            assert ids[~mask.bool()].eq(module.pad_token_id).all()
            assert label.item() == pool.column("label")[row.item()].as_py()
            assert mask.tolist() == sorted(mask.tolist(), reverse=True)


def test_a_tokenizer_without_a_pad_token_pads_with_eos(make_toy):
    module = make_toy()
    assert module.pad_token_id == module.tokenizer.eos_token_id == 1


def test_a_text_without_tokens_becomes_one_pad_token(toy_class, make_toy, monkeypatch):
    pool, held_out = make_toy().load_source()
    empty = held_out.set_column(1, "text", [["", *held_out.column("text").to_pylist()[1:]]])
    monkeypatch.setattr(toy_class, "load_source", lambda self: (pool, empty))
    module = make_toy(eval_batch_size=1)
    batch = next(batch for batch in module.test_dataloader() if batch["row"].item() == 0)
    assert batch["input_ids"].tolist() == [[1]]
    assert batch["attention_mask"].tolist() == [[1]]


def test_a_second_setup_reads_splits_and_tokens_from_the_cache(make_toy, monkeypatch):
    first = make_toy()
    monkeypatch.setattr("datamodules.base.draw_splits", None)
    monkeypatch.setattr("datamodules.base.tokenize", None)
    second = make_toy()
    assert second.fingerprint == first.fingerprint
    for one, two in zip(first.train_dataloader(), second.train_dataloader(), strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_truncated_caches_are_built_again_with_a_warning_and_give_the_same_splits(make_toy, tmp_path):
    expected = split_rows(make_toy())
    for file in (tmp_path / "cache").rglob("*.parquet"):
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="is damaged") as warned:
        assert split_rows(make_toy()) == expected
    assert len([warning for warning in warned if "is damaged" in str(warning.message)]) == 2


def test_the_splits_can_be_read_from_the_cached_parquet(make_toy, tmp_path):
    module = make_toy()
    (file,) = (tmp_path / "cache" / "splits").iterdir()
    table = pq.read_table(file)
    assert table.column_names == ["row", "text", "label", "split"]
    assert table.schema.metadata[b"fingerprint"].decode() == module.fingerprint
    train = table.filter(table.column("split").to_numpy() == "train")
    assert sorted(train.column("row").to_pylist()) == split_rows(module)["train"]


def test_another_tokenizer_or_length_has_tokens_of_its_own(make_toy, tmp_path):
    make_toy()
    make_toy(max_length=16)
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 2
    assert len(list((tmp_path / "cache" / "splits").iterdir())) == 1


def test_calibration_does_not_depend_on_how_training_is_batched(make_toy):
    reference = list(make_toy().calibration_dataloader())
    assert sorted(row for batch in reference for row in batch["row"].tolist()) == split_rows(make_toy())["train"]
    assert max(batch["input_ids"].numel() for batch in reference) <= 2048
    for kwargs in ({"batch_size": 3, "eval_batch_size": 5}, {"train_on": "head_init"}, {"num_workers": 1}):
        for one, two in zip(reference, make_toy(**kwargs).calibration_dataloader(), strict=True):
            assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("size", [3, 7, 40, 41, 113, 200])
def test_a_smaller_calibration_has_the_rows_that_a_train_split_of_its_size_has(make_toy, size):
    rows = sorted(rows_of(make_toy(calibration_size=size).calibration_dataloader()))
    assert rows == split_rows(make_toy(train_size=size))["train"]


def test_a_smaller_calibration_is_a_part_of_train_and_not_its_longest_rows(make_toy):
    module = make_toy(calibration_size=40)
    rows = sorted(rows_of(module.calibration_dataloader()))
    assert set(rows) < set(split_rows(module)["train"])
    lengths = [mask.sum(1) for mask in (batch["attention_mask"] for batch in module.calibration_dataloader())]
    everything = [batch["attention_mask"].sum(1) for batch in make_toy().calibration_dataloader()]
    assert abs(torch.cat(lengths).float().mean() - torch.cat(everything).float().mean()) < 5


def test_evaluation_and_calibration_compute_little_padding(make_toy):
    module = make_toy(eval_tokens=512)
    assert padding(module.calibration_dataloader()) < 0.2  # 200 rows are few for batches of 2,048 tokens
    assert padding(module.test_dataloader()) < 0.1
    assert padding(module.train_dataloader()) < 0.15


def test_fixed_lengths_leave_one_shape_a_length(make_toy):
    module, plain = make_toy(pad_lengths=[64, 16, 128], eval_tokens=1024), make_toy()
    for name in ("test_dataloader", "train_dataloader"):
        batches = list(getattr(module, name)())
        rows = {16: 64, 64: 16} if name == "test_dataloader" else dict.fromkeys((16, 64), module.batch_size)
        assert {tuple(batch["input_ids"].shape) for batch in batches} == {(rows[width], width) for width in rows}
        assert sorted(row for row in rows_of(batches) if row >= 0) == sorted(rows_of(getattr(plain, name)()))
    calibration = list(module.calibration_dataloader())
    assert sorted(rows_of(calibration)) == sorted(rows_of(plain.calibration_dataloader()))
    assert all((batch["row"] >= 0).all() for batch in calibration)


@pytest.mark.parametrize(
    "limits", [{"eval_tokens": 300}, {"eval_batch_size": 5}, {"eval_tokens": 90, "eval_batch_size": 4}]
)
def test_evaluation_keeps_both_limits_and_reads_the_same_rows(make_toy, limits):
    module, plain = make_toy(**limits), make_toy()
    for name in ("test_dataloader", "val_dataloader"):
        batches = list(getattr(module, name)())
        assert max(batch["input_ids"].numel() for batch in batches) <= limits.get("eval_tokens", 4096)
        assert max(len(batch["row"]) for batch in batches) <= limits.get("eval_batch_size", 1000)
        assert len(batches) > len(list(getattr(plain, name)()))
        assert sorted(rows_of(batches)) == sorted(rows_of(getattr(plain, name)()))
    same = zip(module.calibration_dataloader(), plain.calibration_dataloader(), strict=True)
    assert all(torch.equal(ours["row"], theirs["row"]) for ours, theirs in same)
    assert module.split_key("eval") != plain.split_key("eval")


def test_what_fills_a_batch_counts_nowhere(make_toy):
    last = list(make_toy(pad_lengths=[128], eval_batch_size=32, eval_size=40).test_dataloader())[-1]
    assert last["row"].tolist()[8:] == [-1] * 24
    assert last["labels"].tolist()[8:] == [-100] * 24
    assert (last["row"][:8] >= 0).all()
    assert last["attention_mask"][8:].sum(1).tolist() == [1] * 24


def test_training_draws_from_the_split_asked_for(make_toy):
    module = make_toy(train_on="head_init")
    assert sorted(rows_of(module.train_dataloader())) == split_rows(module)["head_init"]


def test_without_a_trainer_validation_is_dev(make_toy):
    module = make_toy(early_stop_on="eval")
    assert sorted(rows_of(module.val_dataloader())) == split_rows(module)["dev"]


@pytest.mark.parametrize("early_stop_on", ["dev", "eval"])
def test_validation_is_early_stop_on_during_a_fit_and_eval_after_it(make_toy, early_stop_on):
    module, model = make_toy(early_stop_on=early_stop_on), Recorder()
    expected = split_rows(module)
    make_trainer(max_epochs=1, num_sanity_val_steps=0).fit(model, module)
    assert sorted(model.validated) == expected[early_stop_on]
    for method in ("validate", "test"):
        model.validated.clear()
        getattr(make_trainer(), method)(model, module, verbose=False)
        assert sorted(model.validated) == expected["eval"]


def test_texts_of_any_origin_are_batched_as_eval_is(make_toy, toy_table):
    module = make_toy(max_length=40)
    texts = toy_table(100, 1).column("text").to_pylist()  # those of eval
    batches = list(zip(module.texts_dataloader(texts), module.ordered_dataloader("eval"), strict=True))
    assert len(batches) > 1
    for ours, of_eval in batches:
        for name in ("input_ids", "attention_mask", "row"):
            assert torch.equal(ours[name], of_eval[name])
        assert (ours["labels"] == -100).all()


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("when", [{"every_n_train_steps": 5}, {"every_n_epochs": 1}])
def test_a_resumed_fit_sees_the_batches_that_an_uninterrupted_one_sees(make_toy, tmp_path, when, num_workers):
    whole = Recorder()
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", filename="{step}", save_top_k=-1, **when)
    kwargs = {"max_epochs": 3, "limit_val_batches": 0}
    make_trainer(**kwargs, callbacks=[checkpoint], enable_checkpointing=True).fit(
        whole, make_toy(num_workers=num_workers)
    )
    assert len(whole.trained) == 39
    assert whole.trained[:13] != whole.trained[13:26]
    for step in (5, 20) if "every_n_train_steps" in when else (13, 26):
        resumed = Recorder()
        path = tmp_path / "checkpoints" / f"step={step}.ckpt"
        make_trainer(**kwargs).fit(resumed, make_toy(num_workers=num_workers), ckpt_path=path)
        assert resumed.trained == whole.trained[step:]


def test_overfit_batches_is_refused_by_name(make_toy):
    module = make_toy()
    with pytest.raises(DataError, match="overfit_batches does not work with"):
        make_trainer(overfit_batches=2).fit(Recorder(), module)


DISTRIBUTED = """
import json, sys
from conftest import Toy
from test_text_datamodule import Recorder, make_trainer

class Reporter(Recorder):
    def on_fit_end(self):
        groups = len(list(self.trainer.datamodule.calibration_dataloader()))
        with open(f"{folder}/rank{self.trainer.global_rank}.json", "w") as file:
            json.dump({"train": self.trained, "dev": self.validated, "calibration": groups}, file)

tokenizer, folder = sys.argv[1:]
module = Toy(tokenizer, head_init_size=50, train_size=200, dev_size=60, cache_dir=f"{folder}/cache")
make_trainer(devices=2, strategy="ddp_fork", max_epochs=1, num_sanity_val_steps=0).fit(Reporter(), module)
"""


def test_two_processes_share_each_epoch(make_toy, tokenizer_folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(DISTRIBUTED)
    paths = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), tokenizer_folder, str(tmp_path)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    module = make_toy()
    assert len(first["train"]) == len(second["train"]) == 7
    trained = [row for batch in first["train"] + second["train"] for row in batch]
    assert set(trained) == set(split_rows(module)["train"])
    assert sorted(first["dev"] + second["dev"]) == split_rows(module)["dev"]
    assert first["calibration"] == second["calibration"] == len(module.calibration_dataloader())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, but must be at least 1"),
        ({"head_init_size": 2}, "head_init_size is 2, but must be at least 3, one row per class"),
        ({"eval_size": 1}, "eval_size is 1"),
        ({"train_on": "dev"}, "train_on is 'dev', but must be 'train' or 'head_init'"),
        ({"early_stop_on": "test"}, "early_stop_on is 'test', but must be 'dev' or 'eval'"),
        (
            {"pad_lengths": [32, 64]},
            r"pad_lengths is \[32, 64\], but must be lengths from 1 that reach max_length",
        ),
        ({"pad_lengths": []}, "pad_lengths is"),
        ({"calibration_size": 2}, "calibration_size is 2, but must be from 3, one row per class, to train_size, 1000"),
        ({"calibration_size": 1001}, "calibration_size is 1001"),
        ({"seed": -1}, "seed is -1"),
        ({"num_workers": -1}, "num_workers is -1"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(toy_class, kwargs, message):
    with pytest.raises(DataError, match=message):
        toy_class("no tokenizer is needed", **kwargs)


def test_too_few_rows_for_the_sizes_asked_for_is_an_error(make_toy):
    with pytest.raises(DataError, match="5110 rows are asked for in all, but only 600"):
        make_toy(train_size=5000)
    with pytest.raises(DataError, match=r"rows of class '.' are asked for in all"):
        make_toy(train_size=490)


def test_what_is_left_out_and_contradicts_itself_is_reported_once(toy_class, make_toy, monkeypatch, caplog):
    pool, held_out = make_toy().load_source()
    texts, labels = pool["text"].to_pylist(), pool["label"].to_pylist()
    texts[:4] = ["", held_out["text"][0].as_py() + "!", "twice", "Twice"]
    labels[:4] = [0, 0, 1, 2]
    changed = pa.table({"row": pool["row"], "text": texts, "label": labels})
    monkeypatch.setattr(toy_class, "load_source", lambda self: (changed, held_out))
    with (
        caplog.at_level("INFO"),
        pytest.warns(UserWarning, match="toy: texts with different labels: 1, for example 'Twice'"),
    ):
        make_toy()
    reported = [record.message for record in caplog.records if "left out" in record.message]
    assert reported == [
        "toy: of 600 training rows, some are left out: 1 without text, 1 matching an eval row, 1 repeated"
    ]


def test_a_folder_without_a_tokenizer_is_an_error_that_names_it(toy_class, tmp_path):
    with pytest.raises(DataError, match=f"The tokenizer '{tmp_path}' could not be loaded"):
        _ = toy_class(str(tmp_path)).pad_token_id


def test_a_length_that_the_model_does_not_take_is_an_error(toy_class, tokenizer_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, model_max_length=64)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"max_length is 128, but the model of .* takes 64"):
        _ = toy_class(str(tmp_path)).pad_token_id


def labels_of(loader) -> dict[int, int]:
    pairs = [zip(batch["row"].tolist(), batch["labels"].tolist(), strict=True) for batch in loader]
    return {row: label for pair in pairs for row, label in pair}


def test_shuffled_calibration_labels_are_the_same_labels_on_other_texts(make_toy):
    plain, shuffled = make_toy(), make_toy(shuffle_calibration_labels=True)
    true, permuted = (labels_of(module.calibration_dataloader()) for module in (plain, shuffled))
    assert true.keys() == permuted.keys()
    assert sorted(true.values()) == sorted(permuted.values())
    assert sum(true[row] != permuted[row] for row in true) > len(true) / 3
    assert labels_of(make_toy(shuffle_calibration_labels=True).calibration_dataloader()) == permuted
    assert labels_of(shuffled.train_dataloader()) == labels_of(plain.train_dataloader())
    assert shuffled.fingerprint == plain.fingerprint
