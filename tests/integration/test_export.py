"""What `influence export` writes is the run's model: for transformers, for peft, and for a reader."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from integration_helpers import ARMS, environment, metrics_of, predictions_of
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from influence_masking import Mask
from lightning_app.__main__ import main
from lightning_app.deploy.export import export
from lightning_app.deploy.predict import predict
from lightning_app.run.trained_run import TrainedRun

OWN_LABELS = ["<i>bad</i>", "good | fine"]
CARD_TEXTS = ["A text to classify.", "Another one."]
WORDS = ["a", "film", "of", "no", "great", "charm", "dull", "plot", "and", "the"]


def checkpoint_of(experiment: Path, dataset: str, arm: str) -> Path:
    return experiment / dataset / arm / "seed0" / "checkpoints" / "best.ckpt"


@pytest.fixture(autouse=True)
def own_modules(tmp_path, monkeypatch):
    """Where transformers copies the file of a folder to, before it runs it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / ".modules"))


@pytest.fixture(scope="module")
def exported(study, tmp_path_factory):
    """Export an arm of the study, once; return the folder and the run, built anew: exporting merges adapters."""
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def get(arm: str) -> tuple[Path, TrainedRun]:
        checkpoint = checkpoint_of(study, "docstrings", arm)
        if arm not in done:
            export(checkpoint, folder / arm)
            done[arm] = TrainedRun(checkpoint)
            done[arm].datamodule.setup()
        return folder / arm, done[arm]

    return get


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory) -> str:
    """Folder of a two-layer BERT of random weights, with its pooler."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=128).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def mean_pooled(tiny_bert, tmp_path_factory) -> Path:
    """Return an experiment on a mean-pooled encoder and texts in CSV files: baseline and LoRA."""
    folder = tmp_path_factory.mktemp("mean_pooled")
    rows = [[" ".join([*WORDS[: row % 7 + 2], WORDS[row // 10], WORDS[row % 10]]), row % 2] for row in range(100)]
    for split, chosen in (("train", rows[:80]), ("test", rows[80:])):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *chosen])
    sizes = [f"data.{split}_size={size}" for split, size in (("head_init", 10), ("train", 20), ("dev", 10))]
    data = {
        "path": "csv",
        "name": "own",
        "label_names": OWN_LABELS,
        "data_files": {split: str(folder / f"{split}.csv") for split in ("train", "test")},
        "cache_dir": str(folder / "cache"),
    }
    (folder / "own.yaml").write_text(
        json.dumps({"dataset": "own", "data": {"class_path": "datamodules.HubTextDataModule", "init_args": data}})
    )
    words = ["--datasets", folder / "own.yaml", "--arms", "baseline", "lora", "--backbone", tiny_bert]
    words += [
        "--outputs",
        folder,
        "--name",
        "small",
        "--set",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        *sizes,
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "datasets")
        assert main(["experiment", *map(str, words)]) == 0
    return folder / "small"


def logits(model, run: TrainedRun, hide_mask: bool = False) -> torch.Tensor:
    """Those of eval, in the order of its rows, from the batches of the run."""
    rows, found = [], []
    with torch.no_grad():
        for batch in run.datamodule.ordered_dataloader("eval"):
            mask = None if hide_mask else batch["attention_mask"]
            output = model(input_ids=batch["input_ids"], attention_mask=mask)
            found.append(output if isinstance(output, torch.Tensor) else output.logits)
            rows.append(batch["row"])
    return torch.cat(found)[torch.cat(rows).argsort()]


@pytest.mark.parametrize("arm", ARMS)
def test_an_exported_model_gives_the_logits_and_predictions_of_its_run(arm, exported):
    folder, run = exported(arm)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert type(model).__name__ == "Qwen2ForSequenceClassification"
    written = torch.tensor(predictions_of(run.folder)["logits"])
    found = logits(model, run)
    torch.testing.assert_close(found, logits(run.model, run), rtol=0, atol=1e-4)
    torch.testing.assert_close(found, written, rtol=0, atol=1e-4)
    assert torch.equal(found.argmax(1), written.argmax(1))
    if arm != "lora":  # nothing is merged and the same attention runs: only the head's product has another shape
        torch.testing.assert_close(logits(model, run, hide_mask=True), logits(run.model, run), rtol=0, atol=2e-7)


def test_an_exported_model_knows_the_names_of_the_classes_and_its_pad_token(exported):
    folder, run = exported("influence")
    config = AutoConfig.from_pretrained(folder)
    assert list(config.id2label.values()) == list(run.datamodule.label_names)
    assert config.label2id == {name: number for number, name in config.id2label.items()}
    assert config.pad_token_id == AutoTokenizer.from_pretrained(folder).pad_token_id == run.datamodule.pad_token_id
    assert not list(folder.rglob("*.bin"))
    assert all(path.stat().st_mode & 0o044 for path in folder.iterdir())


def test_an_exported_tokenizer_cuts_and_pads_as_the_run_did(exported):
    folder, run = exported("baseline")
    _, held_out = run.datamodule.load_source()
    texts = {row["row"]: row["text"] for row in held_out.to_pylist()}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cut = 0
    for batch in run.datamodule.ordered_dataloader("eval"):
        asked = [texts[row] for row in batch["row"].tolist()]
        found = tokenizer(asked, padding=True, truncation=True, return_tensors="pt")
        assert torch.equal(found["input_ids"], batch["input_ids"])
        assert torch.equal(found["attention_mask"], batch["attention_mask"])
        cut += int((batch["attention_mask"].sum(1) == run.datamodule.max_length).sum())
    assert cut


def test_the_adapter_alone_gives_the_logits_of_its_run(exported):
    folder, run = exported("lora")
    pad = {"num_labels": 7, "pad_token_id": run.datamodule.pad_token_id}  # as the card says
    model = AutoPeftModelForSequenceClassification.from_pretrained(folder / "adapter", **pad).eval()
    torch.testing.assert_close(logits(model, run), logits(run.model, run), rtol=0, atol=1e-4)
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert sum(weight.numel() for weight in weights.values()) == metrics_of(run.folder)["trainable_parameters"]


@pytest.mark.parametrize("arm", ["influence", "influence+all"])
def test_the_mask_is_in_the_folder_and_its_weights_are_zero(arm, exported):
    folder, run = exported(arm)
    mask, weights = Mask.load(folder / "mask.safetensors"), load_file(folder / "model.safetensors")
    assert mask.digest == metrics_of(run.folder)["mask_digest"]
    for name in mask.shapes:
        assert torch.count_nonzero(weights[name.replace("backbone.", "model.", 1)][mask.flags(name)]) == 0


@pytest.mark.parametrize("arm", ["baseline", "lora"])
def test_a_mean_pooled_encoder_is_loaded_by_the_file_that_its_folder_carries(arm, mean_pooled, tiny_bert, tmp_path):
    checkpoint = checkpoint_of(mean_pooled, "own", arm)
    export(checkpoint, tmp_path / "out")
    run = TrainedRun(checkpoint)
    run.datamodule.setup()
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    found, expected = logits(model, run), logits(run.model, run)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert torch.equal(found.argmax(1), torch.tensor(predictions_of(run.folder)["logits"]).argmax(1))
    assert list(model.config.id2label.values()) == OWN_LABELS
    if arm == "baseline":
        assert torch.equal(found, expected)
        return
    model_class = get_class_from_dynamic_module("mean_pooled.MeanPooledForSequenceClassification", tmp_path / "out")
    base = model_class.from_pretrained(tiny_bert, config=model.config)
    adapted = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
    torch.testing.assert_close(logits(adapted, run), expected, rtol=0, atol=1e-4)


def test_the_tokenizer_of_a_mean_pooled_encoder_needs_no_code(mean_pooled, tmp_path):
    export(checkpoint_of(mean_pooled, "own", "baseline"), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a film")["input_ids"] == [2, 5, 6, 3]


CHECK = """
torch.save(model.eval()(**batch).logits, "logits.pt")
"""


def run_code(card: Path, folder: Path) -> tuple[str, torch.Tensor]:
    """Run the card's code in a process of its own; return what it prints, and its last model's logits for its texts.

    Fails if it prints anything to standard error but progress.
    """
    blocks = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    code = "\n".join([*blocks, CHECK]).replace("path/to/this/folder", str(card.parent))
    env = environment(HF_MODULES_CACHE=str(folder / ".modules"), HF_HUB_OFFLINE="1")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = re.split(r"[\r\n]+", done.stderr)
    assert [line for line in lines if line and not line.startswith("Loading weights: ")] == []
    return done.stdout, torch.load(folder / "logits.pt")


@pytest.mark.parametrize("arm", ["influence", "lora"])
def test_the_code_of_the_card_gives_the_logits_of_the_run_and_prints_no_warning(arm, exported, tmp_path):
    folder, run = exported(arm)
    output, found = run_code(folder / "README.md", tmp_path)
    assert eval(output)[0] in run.datamodule.label_names
    torch.testing.assert_close(found, predict(run, CARD_TEXTS, "cpu"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("arm", ["baseline", "lora"])
def test_the_code_of_the_card_of_a_mean_pooled_encoder_does_the_same(arm, mean_pooled, tmp_path):
    export(checkpoint_of(mean_pooled, "own", arm), tmp_path / "out")
    _, found = run_code(tmp_path / "out" / "README.md", tmp_path)
    run = TrainedRun(checkpoint_of(mean_pooled, "own", arm))
    torch.testing.assert_close(found, predict(run, CARD_TEXTS, "cpu"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("arm", ["baseline", "influence", "lora", "own/baseline", "own/lora"])
def test_the_card_says_nothing_twice(arm, exported, mean_pooled, tmp_path):
    if arm.startswith("own/"):
        export(checkpoint_of(mean_pooled, "own", arm.removeprefix("own/")), tmp_path / "out")
    folder = tmp_path / "out" if arm.startswith("own/") else exported(arm)[0]
    text = (folder / "README.md").read_text()
    prose = re.sub(r"```.*?```|\A---.*?\n---", "", text, flags=re.DOTALL)
    prose = " ".join(line for line in prose.splitlines() if not line.startswith(("|", "#")))
    sentences = re.split(r"(?<=[.:?])\**\s+", prose)
    assert len(sentences) > 4
    assert [sentence for sentence, times in Counter(sentences).items() if times > 1] == []
    code = re.findall(r"^.*\w.*$", "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), re.MULTILINE)
    assert code
    assert [line for line, times in Counter(code).items() if times > 1] == []


ENDS = (
    "a film{pad}",
    "a film {pad}",
    "{pad}",
    "{pad}{pad}",
    "{pad} of charm",
    "dull {pad} plot {pad}{pad}",
    "no",
    "{pad} and",
)


def assert_same_logits(folder: Path, run: TrainedRun) -> None:
    """Check that the exported folder gives what `influence predict` gives for texts with pad tokens."""
    texts = [text.format(pad=run.datamodule.tokenizer.pad_token) for text in ENDS]
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, config=model.config, trust_remote_code=False)
    expected = predict(run, texts, "cpu")
    with torch.inference_mode():
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        alone = [tokenizer(text, truncation=True, return_tensors="pt") for text in texts]
        torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-4)
        for number, text in enumerate(alone):
            torch.testing.assert_close(model(**text).logits[0], expected[number], rtol=0, atol=1e-4)
    assert not torch.allclose(expected[0], expected[4], atol=1e-5)


@pytest.mark.parametrize("arm", ["baseline", "lora"])
def test_texts_that_end_in_the_pad_token_have_the_logits_of_predict(arm, exported):
    assert_same_logits(*exported(arm))


@pytest.mark.parametrize("arm", ["baseline", "lora"])
def test_texts_that_end_in_the_pad_token_of_a_mean_pooled_encoder_do_too(arm, mean_pooled, tmp_path):
    checkpoint = checkpoint_of(mean_pooled, "own", arm)
    export(checkpoint, tmp_path / "out")
    assert_same_logits(tmp_path / "out", TrainedRun(checkpoint))


@pytest.mark.parametrize("token", ["<|endoftext|>", "<unk>"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_tokenizer_that_appends_a_token_does_too(
    token, pooling, tiny_qwen, condition_words, influence, tmp_path, monkeypatch
):
    folder = tmp_path / "appends"
    shutil.copytree(tiny_qwen, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    number = next(added["id"] for added in tokenizer["added_tokens"] if added["content"] == token)
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": token, "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    options = [f"--model.backbone={folder}", f"--model.pooling={pooling}"]
    assert influence("fit", *condition_words("baseline", "mine"), *options) == 0
    checkpoint = checkpoint_of(tmp_path / "outputs" / "mine", "docstrings", "baseline")
    assert influence("export", "--ckpt", checkpoint, "--out", "out") == 0
    run = TrainedRun(checkpoint)
    assert run.datamodule.tokenizer("a film")["input_ids"][-1] == number
    assert_same_logits(tmp_path / "out", run)


def test_a_run_on_an_adapter_is_exported_whole_and_without_an_adapter_of_its_own(
    tiny_qwen, condition_words, influence, tmp_path
):
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_qwen), config).save_pretrained(tmp_path / "adapter")
    for arm in ("baseline", "lora"):
        assert influence("fit", *condition_words(arm, "mine"), f"--model.backbone={tmp_path / 'adapter'}") == 0
    checkpoint = checkpoint_of(tmp_path / "outputs" / "mine", "docstrings", "lora")
    assert influence("export", "--ckpt", checkpoint, "--out", "out") == 0
    assert not (tmp_path / "out" / "adapter").exists()
    assert "peft" not in (tmp_path / "out" / "README.md").read_text()
    assert_same_logits(tmp_path / "out", TrainedRun(checkpoint))


def test_the_card_says_what_the_model_is_and_what_it_scored(exported):
    folder, run = exported("influence")
    card, metrics = (folder / "README.md").read_text(), metrics_of(run.folder)
    for name in ("accuracy", "macro_f1", "nll", "ece"):
        assert f"| {metrics[name]:.4f} " in card
    for name in ("predicted_change", "measured_change"):
        assert f"| {metrics[name]:+.4f} " in card
    for said in ("head_init 50, train 50, dev 50, eval 50", "held out", metrics["backbone"], "follow their licence"):
        assert said in card
    assert "trust_remote_code" not in card


def test_names_from_data_are_no_markup_in_the_card(mean_pooled, tmp_path):
    export(checkpoint_of(mean_pooled, "own", "baseline"), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "&lt;i>bad&lt;/i>, good \\| fine" in card
    assert "<i>" not in card


def test_a_run_that_was_not_measured_is_exported_and_its_card_says_so(study, tmp_path):
    run = study / "docstrings" / "influence" / "seed0"
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    export(tmp_path / "run" / "checkpoints" / "best.ckpt", tmp_path / "out")
    assert "has not measured this checkpoint" in (tmp_path / "out" / "README.md").read_text()


def told(capsys) -> str:
    return capsys.readouterr().err.partition("influence export: error: ")[2]


def test_a_folder_with_something_in_it_is_kept(study, influence, tmp_path, capsys):
    words = ["export", "--ckpt", checkpoint_of(study, "docstrings", "baseline"), "--out", "mine"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert influence(*words) == 2
    assert "exists and is not empty" in told(capsys)
    assert influence(*words, "--overwrite") == 2
    assert "is not an earlier export" in told(capsys)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_an_earlier_export_is_replaced_where_that_is_asked_for(study, influence, tmp_path, capsys):
    for arm, words in (("lora", []), ("baseline", ["--overwrite"])):
        checkpoint = checkpoint_of(study, "docstrings", arm)
        assert influence("export", "--ckpt", checkpoint, "--out", tmp_path / "out", *words) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert not (tmp_path / "out" / "adapter").exists()
    assert "How to load it" in capsys.readouterr().out


def test_what_fails_leaves_nothing(study, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_app.deploy.export.write_card", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(checkpoint_of(study, "docstrings", "baseline"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_model_that_computes_something_else_is_not_written(study, influence, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lightning_app.deploy.export.model._head_name", lambda module: "lm_head")
    words = ["export", "--ckpt", checkpoint_of(study, "docstrings", "baseline"), "--out", "out"]
    assert influence(*words) == 2
    assert "with a linear layer `lm_head`" in told(capsys)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("modules.Baseline.forward", lambda self, ids, mask: torch.ones(len(ids), 7))
    assert influence(*words) == 2
    assert "should give the logits of the run, but they differ by" in told(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: (run / "checkpoints" / "best.ckpt").unlink(), "should be a checkpoint, but is not there"),
        (lambda run: (run / "checkpoints" / "best.ckpt").write_text("x"), "should be a checkpoint, but is damaged"),
        (lambda run: (run / "config.yaml").unlink(), "config.yaml"),
        (lambda run: (run / "config.yaml").write_text("trainer: ["), "is not a YAML file"),
        (lambda run: (run / "config.yaml").write_text("- a list"), "must hold keys with values"),
        (lambda run: torch.save({"x": Path()}, run / "checkpoints" / "best.ckpt"), "holds more than weights"),
        (lambda run: torch.save({"x": 1}, run / "checkpoints" / "best.ckpt"), "is not a checkpoint of `influence fit`"),
    ],
)
def test_a_run_that_is_not_whole_is_told(break_it, message, study, influence, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(study / "docstrings" / "baseline" / "seed0", run)
    break_it(run)
    assert influence("export", "--ckpt", run / "checkpoints" / "best.ckpt", "--out", "out") == 2
    assert message in told(capsys)
    assert not (tmp_path / "out").exists()
