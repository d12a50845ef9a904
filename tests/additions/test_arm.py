"""An arm of one's own is a YAML file alone, whatever its role."""

import json
from pathlib import Path

import pytest
import yaml

ARMS = {
    "warm": ("baseline", None, {"class_path": "modules.Baseline"}),
    "cut": ("mask", "warm", {"class_path": "modules.Influence", "init_args": {"tune": "none"}}),
    "ranks": ("adapter", "warm", {"class_path": "modules.LoRA", "init_args": {"rank": 2}}),
    "everything": ("full", "warm", {"class_path": "modules.FullFineTuning"}),
    "fractions": ("sweep", "warm", {"class_path": "modules.Sweep", "init_args": {"fractions": [0.01, 0.1]}}),
}
"""By the name of the file: role, start and model."""

TRAINS = {"warm": "head", "cut": "none", "cut+head": "head", "ranks": "adapter", "everything": "all"}
SWEEPS = {"fractions": "none"}


@pytest.fixture
def experiment(influence, tiny_qwen, data_cache, tmp_path: Path) -> Path:
    """Return the folder of an experiment with arms that no shipped file describes, nor the one that they start from."""
    for name, (role, start, model) in ARMS.items():
        content = {"arm": {"role": role, "starts_from": start}, "model": model}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    arms = ["cut.yaml", "cut.yaml+head", "ranks.yaml", "everything.yaml", "fractions.yaml"]  # warm is beside them
    grid = ["--datasets", "docstrings", "--arms", *arms, "--backbone", tiny_qwen, "--name", "own", "--quick"]
    sets = [f"data.cache_dir={data_cache}", "trainer.accelerator=cpu", "trainer.max_epochs=1"]
    assert influence("experiment", *grid, "--set", *sets) == 0
    return tmp_path / "outputs" / "own-quick"


@pytest.mark.slow
def test_arms_of_every_role_go_through_experiment_and_report(experiment, influence, capsys):
    runs = {path.parents[1].name: path.parent for path in experiment.glob("docstrings/*/seed0/metrics.json")}
    assert runs.keys() == {*TRAINS, *SWEEPS}
    for label, run in runs.items():
        name, plus, overlay = label.partition("+")
        role, start, _ = ARMS[name]
        found = json.loads((run / "metrics.json").read_text())
        expected = {
            "arm": label,
            "role": role,
            "starts_from": start,
            "control": None,
            "trains": (TRAINS | SWEEPS)[label],
        }
        assert {key: found[key] for key in expected} == expected
        typed = json.loads((run / "condition.json").read_text())["typed"]
        assert typed["arm"] in (f"{name}.yaml{plus}{overlay}", name)
        begins = f"start: outputs/own-quick/docstrings/{start}/seed0/start.safetensors" if start else "start: null"
        assert begins in (run / "config.yaml").read_text()

    capsys.readouterr()
    assert influence("report", "--results", experiment) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert {row[2].strip() for row in rows[2:]} == TRAINS.keys()
    assert all(name in (experiment / "report.md").read_text() for name in ARMS)
