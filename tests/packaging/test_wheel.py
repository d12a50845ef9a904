import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_has_the_four_packages_and_no_folder_called_callbacks(wheel):
    top = {name.split("/")[0] for name in wheel.namelist() if ".dist-info" not in name}
    assert top == {"lightning_app", "modules", "datamodules", "influence_masking"}


def test_the_wheel_carries_every_config_where_the_experiment_looks_for_them(wheel):
    shipped = {name.removeprefix("lightning_app/configs/") for name in wheel.namelist() if name.endswith(".yaml")}
    assert shipped == {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml")}


def test_the_wheel_installs_the_influence_command(wheel):
    entry_points = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "influence = lightning_app.__main__:main" in wheel.read(entry_points).decode()
