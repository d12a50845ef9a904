"""The command that looks into mask files."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from influence_masking import Mask
from influence_masking.__main__ import main

A = torch.tensor([[1, 1, 0], [0, 0, 1]]) == 1


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    Mask.from_flags({"layers.0.q_proj.weight": A}, score="snip", seed=None).save(tmp_path / "a")
    Mask.from_flags({"layers.0.q_proj.weight": ~A}).save(tmp_path / "b")
    return [str(tmp_path / name) for name in "ab"]


def test_inspect_shows_digest_provenance_and_shares(files: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", *files]) == 0
    output = capsys.readouterr().out
    assert Mask.load(files[0]).digest in output
    assert "selected 3 of 6 (50.0000%)" in output
    assert "score    snip" in output
    assert "seed" not in output
    assert "layers.0 q_proj            3  50.0000%" in output


def test_compare_shows_the_overlap_of_each_pair(files: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["compare", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"0 | 6 | 0.000000 | 0.333333  {files[0]} and {files[1]}"
    assert len(lines) == 2


def test_a_damaged_file_is_one_line_and_a_status(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"nothing")
    command = [sys.executable, "-m", "influence_masking", "inspect", str(tmp_path / "bad")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert result.returncode == 1
    assert "bad is damaged or not a mask file" in result.stderr.splitlines()[0]
    assert "Traceback" not in result.stderr


def test_one_file_cannot_be_compared(files: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["compare", files[0]])
    assert caught.value.code == 2
    assert "at least two files" in capsys.readouterr().err
