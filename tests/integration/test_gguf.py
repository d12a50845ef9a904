"""An experiment on a GGUF file is one on its de-quantized weights, and says that they were quantized."""

import json
from pathlib import Path

import pytest
import torch
from gguf_files import write_gguf
from huggingface_hub import constants
from integration_helpers import metrics_of, predictions_of
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lightning_app.__main__ import main
from lightning_app.run.trained_run import TrainedRun
from modules.backbone import resolve_backbone

ARMS = ("baseline", "influence", "lora")
TYPES = "Q4_0 60.2 %, Q8_0 35.2 %, F16 3.54 %, F32 0.997 %"


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """Give these tests a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HOME", str(tmp_path_factory.mktemp("home")))
        yield
    resolve_backbone.cache_clear()


@pytest.fixture(scope="module")
def files(tiny_qwen, tmp_path_factory) -> tuple[Path, Path]:
    """Return a GGUF file, and a folder with the weights that it stands for."""
    file = tmp_path_factory.mktemp("gguf") / "tiny.Q4_0.gguf"
    return file, write_gguf(Path(tiny_qwen), file)


@pytest.fixture(scope="module")
def words(data_cache) -> list[str]:
    return ["--datasets", "docstrings", "--quick", "--set", f"data.cache_dir={data_cache}", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def experiments(files, words, tmp_path_factory) -> list[Path]:
    """Run the same experiment on the file and on the folder."""
    outputs = tmp_path_factory.mktemp("outputs")
    for name, backbone in zip(("file", "folder"), files, strict=True):
        grid = ["--arms", *ARMS, "--backbone", str(backbone), "--outputs", str(outputs), "--name", name]
        assert main(["experiment", *grid, *words, "trainer.max_epochs=2"]) == 0
    return [outputs / "file-quick", outputs / "folder-quick"]


@pytest.mark.parametrize("arm", ARMS)
def test_results_are_those_of_the_de_quantized_weights(arm, experiments, files):
    on_file, on_folder = (experiment / "docstrings" / arm / "seed0" for experiment in experiments)
    assert predictions_of(on_file) == predictions_of(on_folder)
    found, expected = metrics_of(on_file), metrics_of(on_folder)
    assert (found.pop("backbone"), expected.pop("backbone")) == tuple(map(str, files))
    assert (found.pop("backbone_quantization"), expected.pop("backbone_quantization")) == (TYPES, None)
    assert found == expected


def test_the_report_names_the_types(experiments):
    on_file, on_folder = ((experiment / "report.md").read_text() for experiment in experiments)
    assert TYPES[:40] in on_file
    assert "quantization" not in on_folder


def test_the_labels_of_predict_are_those_of_the_evaluation(experiments, influence, tmp_path):
    run = TrainedRun(checkpoint := experiments[0] / "docstrings" / "lora" / "seed0" / "checkpoints" / "best.ckpt")
    rows, names = predictions_of(checkpoint.parents[1]), run.datamodule.label_names
    texts = {row["row"]: row["text"] for row in run.datamodule.load_source()[1].to_pylist()}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": texts[row]}) + "\n" for row in rows["row"]))
    assert influence("predict", "--ckpt", checkpoint, "--input", "in.jsonl", "--output", "out.jsonl") == 0
    labels = [json.loads(line)["predicted_label"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert labels == [names[label] for label in torch.tensor(rows["logits"]).argmax(1).tolist()]


@pytest.mark.parametrize("arm", ["influence", "lora"])
def test_an_export_has_whole_weights_and_its_card_names_the_types(arm, experiments, files, influence, tmp_path):
    checkpoint = experiments[0] / "docstrings" / arm / "seed0" / "checkpoints" / "best.ckpt"
    assert influence("export", "--ckpt", checkpoint, "--out", "out") == 0
    models = [AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()]
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    run = TrainedRun(checkpoint)
    if arm == "lora":
        pad = {"num_labels": 7, "pad_token_id": run.datamodule.pad_token_id}
        models.append(
            AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out" / "adapter", **pad).eval()
        )
    batch = run.datamodule.tokenizer(["compute a graph", "return it"], padding=True, return_tensors="pt")
    for model in models:
        with torch.no_grad():
            found, expected = model(**batch).logits, run.model(batch["input_ids"], batch["attention_mask"])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{TYPES}; de-quantized to float32" in " ".join(card.split())
    assert f"derived from those of {files[0]}" in " ".join(card.split())
    assert "base_model" not in card


def test_a_tokenizer_of_ones_own_is_used_and_kept(tiny_qwen, words, influence, tmp_path):
    write_gguf(Path(tiny_qwen), tmp_path / "bare.gguf", tokenizer=False)
    grid = ["--arms", "baseline", "lora", "--backbone", "bare.gguf", "--name", "bare"]
    assert influence("experiment", *grid, "--tokenizer", tiny_qwen, *words) == 0
    checkpoint = tmp_path / "outputs" / "bare-quick" / "docstrings" / "lora" / "seed0" / "checkpoints" / "best.ckpt"
    assert TrainedRun(checkpoint).datamodule.tokenizer_path == tiny_qwen


@pytest.mark.parametrize(
    ("backbone", "tokenizer", "message"),
    [
        ("nowhere.gguf", None, "nowhere.gguf does not exist"),
        ("bare.gguf", None, "Give another one, a hub id or a folder: --tokenizer"),
        ("bare.gguf", "larger", "--tokenizer has 319 tokens, but the backbone 'bare.gguf' has 318"),
        ("cut.gguf", None, "cut.gguf is damaged or cut off"),
        ("text.gguf", None, "text.gguf is a file, but not a GGUF file"),
    ],
)
def test_a_mistake_is_refused_before_any_training(
    backbone, tokenizer, message, tiny_qwen, words, influence, capsys, tmp_path
):
    write_gguf(Path(tiny_qwen), tmp_path / "bare.gguf", tokenizer=False)
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "bare.gguf").read_bytes()[:9000])
    (tmp_path / "text.gguf").write_text("a text")
    if tokenizer:
        larger = AutoTokenizer.from_pretrained(tiny_qwen)
        larger.add_tokens(["one_more"])
        larger.save_pretrained(tmp_path / tokenizer)
    chosen = ["--tokenizer", tokenizer] if tokenizer else []
    assert influence("experiment", "--arms", "baseline", "--backbone", backbone, *chosen, *words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("checkpoints"))
