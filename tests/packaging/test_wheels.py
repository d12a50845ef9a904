"""The two distributions as wheels: what each holds, and that they install side by side."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fresh(wheels: Path, pip: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new environment in which pip has installed both wheels, with no index at hand."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    offline = ["--quiet", "--no-index", "--no-deps", "--find-links", str(wheels)]
    pip("--python", str(folder / "bin" / "python"), "install", *offline, "influence-study", "influence-masking")
    return folder


def installed(environment: Path) -> dict[str, Distribution]:
    return {one.name: one for one in distributions(path=list(map(str, environment.glob("lib/python*/site-packages"))))}


def files(wheels: Path, distribution: str) -> list[str]:
    (wheel,) = wheels.glob(f"{distribution}-*.whl")
    return zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize(
    ("distribution", "packages"),
    [
        ("influence_study", {"lightning_app", "modules", "datamodules"}),
        ("influence_masking", {"influence_masking"}),
    ],
)
def test_a_wheel_holds_its_own_packages_and_nothing_else(wheels, distribution, packages):
    assert {name.split("/")[0] for name in files(wheels, distribution) if ".dist-info" not in name} == packages


def test_no_file_belongs_to_two_distributions(fresh):
    study, masking = (set(installed(fresh)[name].files or []) for name in ("influence-study", "influence-masking"))
    assert len(study) > 50
    assert len(masking) > 20
    assert not study & masking


def test_the_study_requires_the_version_of_the_library_that_lies_beside_it(fresh):
    found = installed(fresh)
    needed = {one.name: one for one in map(Requirement, found["influence-study"].requires or [])}
    assert needed["influence-masking"].specifier.contains(found["influence-masking"].version)
    assert needed["influence-masking"].marker is None  # no extra's, but always


def test_the_library_says_that_it_is_typed(wheels):
    assert "influence_masking/py.typed" in files(wheels, "influence_masking")


def test_the_wheel_carries_every_config_where_the_experiment_looks_for_them(wheels):
    shipped = {
        name.removeprefix("lightning_app/configs/")
        for name in files(wheels, "influence_study")
        if name.startswith("lightning_app/configs/")
    }
    assert shipped == {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml")}


def test_the_study_installs_the_influence_command(fresh):
    (entry_point,) = installed(fresh)["influence-study"].entry_points
    assert (entry_point.name, entry_point.value) == ("influence", "lightning_app.__main__:main")
    assert (fresh / "bin" / "influence").is_file()
