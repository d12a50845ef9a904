"""Configurations are UTF-8, whatever the encoding of the locale."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OWN = """
dataset: own
data:
  class_path: datamodules.HubTextDataModule
  init_args: {name: own, path: csv, data_files: {train: x.csv, test: x.csv}, label_names: [négatif, 積極的]}
"""


def test_a_configuration_is_read_and_printed_as_utf_8(tmp_path):
    (tmp_path / "own.yaml").write_text(OWN, encoding="utf-8")
    ascii_locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "callbacks")])
    words = ["-c", "configs/base.yaml", "-c", "own.yaml", "-c", "configs/arms/baseline.yaml", "--print_config"]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_app", "fit", *words],
        env=os.environ | ascii_locale | {"PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert "- négatif\n    - 積極的\n" in done.stdout.decode("utf-8")
