"""Broken configurations: refused in one message by the checks before any training, or run where they say."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from mutations import JUNK, broken_bytes, broken_values, examples, outcome

from lightning_app.grid.experiment import build_conditions, experiment_folder, parse_options
from lightning_app.run.cli import InfluenceCLI
from lightning_app.run.configs import configs_folder

CONFIGS = configs_folder()
EXPERIMENTS = [yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("experiment", "demo", "study")]
CONDITIONS = [f"arms/{path.stem}" for path in sorted((CONFIGS / "arms").glob("*.yaml"))] + ["base", "data/docstrings"]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return an empty working directory, and no Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file: Path, content: Any) -> Path:
    """Return a configuration: JSON is YAML."""
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return file


@examples(300)
@given(data=st.data())
def test_a_broken_experiment_is_refused_or_is_a_grid_of_known_names_in_its_folder(offline, data):
    whole = data.draw(st.sampled_from(EXPERIMENTS))
    text = yaml.safe_dump(whole).encode()
    file = write(offline / "x.yaml", data.draw(broken_values(whole) | broken_bytes(text) | JUNK))

    def grid() -> Any:
        options = parse_options(["-c", str(file)])
        folder = experiment_folder(options)
        return options, folder, build_conditions(options, folder)

    found, _ = outcome(grid)
    if found is not None:
        options, folder, conditions = found
        assert folder.parent == Path(options.outputs)
        assert folder.name not in ("", ".", "..")
        for condition in conditions:
            assert condition.folder == folder / condition.dataset / condition.arm / f"seed{condition.seed}"
            assert all(path.is_relative_to(CONFIGS) for path in condition.configs)
    assert [path.name for path in offline.iterdir()] == ["x.yaml"]


@examples(60)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_a_broken_condition_is_refused_or_is_placed_in_its_folder(offline, tiny_qwen, data):
    arm = data.draw(st.sampled_from(CONDITIONS[:-2]))
    broken = data.draw(st.sampled_from([arm, *CONDITIONS[-2:]]))
    words = []
    for name in ("base", "data/docstrings", arm):
        file = CONFIGS / f"{name}.yaml"
        if name == broken:
            whole = yaml.safe_load(file.read_text())
            file = write(offline / "x.yaml", data.draw(broken_values(whole) | broken_bytes(file.read_bytes())))
        words += ["-c", str(file)]
    words += [f"--model.backbone={tiny_qwen}", "--trainer.accelerator=cpu", "--outputs=out"]
    cli, _ = outcome(lambda: InfluenceCLI(words, run=False))
    if cli is not None:
        parts = Path(cli.trainer.default_root_dir).parts
        assert len(parts) == 5
        assert parts[0] == "out"
        assert not {".", "..", ""} & set(parts)
    assert not list(offline.glob("out/*/*/*"))


NUMBERS = (
    st.floats()
    | st.integers(-(2**70), 2**70)
    | st.booleans()
    | st.sampled_from(["nan", "inf", "-inf", "1e999", "x", ""])
)
OPTIONS = {
    "full_ft": [
        "model.learning_rate",
        "model.weight_decay",
        "model.warmup_ratio",
        "data.batch_size",
        "data.train_size",
    ],
    "lora": ["model.rank", "model.alpha", "model.dropout", "data.max_length", "data.eval_size", "seed_everything"],
    "influence": [
        "model.masking.fraction",
        "model.masking.micro_batch_size",
        "data.calibration_size",
        "data.num_workers",
    ],
    "sweep": ["model.fractions", "model.masking.micro_batch_size", "data.pad_lengths"],
}


@examples(60)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_a_number_out_of_its_range_is_refused(offline, tiny_qwen, data):
    arm = data.draw(st.sampled_from(list(OPTIONS)))
    option, value = data.draw(st.sampled_from(OPTIONS[arm])), data.draw(NUMBERS)
    listed = f"[{value}]" if option.endswith("s") and "workers" not in option else value
    words = [
        word for name in ("base", "data/docstrings", f"arms/{arm}") for word in ("-c", str(CONFIGS / f"{name}.yaml"))
    ]
    words += [f"--model.backbone={tiny_qwen}", "--trainer.accelerator=cpu", f"--{option}={listed}"]
    cli, _ = outcome(lambda: InfluenceCLI(words, run=False))
    if cli is not None:
        assert float(value) == float(value), f"{option} took {value}"
        assert float("-inf") < float(value) < float("inf"), f"{option} took {value}"
        assert float(value) >= 0, f"{option} took {value}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainer": [1]}, "x.yaml is [1], but must be an object of its options"),
        ({"trainer": None}, "x.yaml is null, but must be an object of its options"),
        ({"data": None}, "data must be set"),
        ({"outputs": None}, "outputs is null"),
        ({"experiment": None}, "--experiment is None, but must be the name of a folder"),
        ({"seed_everything": None}, "seed_everything is null, but must be "),
        ({"seed_everything": -1}, "seed_everything is -1"),
        ({"model": {"init_args": {"weight_decay": None}}}, "model.weight_decay is null"),
        ({"data": {"init_args": {"batch_size": None}}}, "data.batch_size is null"),
        (b"\x80", "x.yaml is not a YAML file"),
        (b"[" * 100_000, "x.yaml is not a YAML file"),
        (b"a: 2024-99-99", "x.yaml is not a YAML file"),
    ],
)
def test_what_the_argument_parser_lets_through_is_told_by_its_key(change, message, words, refused, tmp_path):
    file = write(tmp_path / "x.yaml", change)
    assert message in refused("fit", *words("lora"), "-c", file)


@pytest.mark.parametrize("key", ["outputs", "backbone"])
def test_an_experiment_without_a_place_or_a_model_is_refused(key, refused, tmp_path):
    file = write(tmp_path / "x.yaml", {key: None})
    assert f"--{key} is null" in refused("experiment", "-c", file)
