"""The harness stands where it is installed: packages of the same names elsewhere change nothing, or are named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.copies import copy_to_change

ROOT = Path(__file__).parents[2]
FOREIGN = "raise ImportError('of somebody else')\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as installing the wheel leaves it: the packages that pyproject.toml lists, and no others."""
    site = tmp_path_factory.mktemp("site")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for package in settings["packages"]:
        copy_to_change(ROOT / package, site / package, "__pycache__")
    for left_out in settings["exclude"]:
        path = site / left_out
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return site


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with packages that have our names, as torchtune installs ``recipes`` and projects have ``tests``."""
    for name in ("methods", "reports", "recipes", "tests"):
        (tmp_path / "foreign" / name).mkdir(parents=True)
        (tmp_path / "foreign" / name / "__init__.py").write_text(FOREIGN)
    (tmp_path / "foreign" / "methods" / "base.py").write_text(FOREIGN)
    (tmp_path / "foreign" / "recipes" / "foreign.yaml").write_text("# foreign: a recipe of somebody else\n")
    return tmp_path / "foreign"


def python(
    home: Path, *arguments: str, before: str = "", after: str = "", cwd: Path
) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds the harness below ``home``."""
    path = os.pathsep.join(part for part in (before, str(home), after) if part)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def entry(way: str, folder: Path) -> list[str]:
    """The arguments that start the command line."""
    script = folder / "bin" / "harness"  # as pip writes it for an entry point
    script.parent.mkdir()
    script.write_text("import sys\nfrom harness.cli import main\nsys.exit(main())\n")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    return {"script": [str(script)], "module": ["-m", "harness"], "torchrun": [*launcher, "-m", "harness"]}[way]


@pytest.mark.parametrize("way", ["script", "module", "torchrun"])
@pytest.mark.parametrize("installed", ["wheel", "checkout"])
def test_names_of_others_on_the_path_and_in_the_working_folder(
    installed: str, way: str, wheel: Path, foreign: Path, tmp_path: Path
) -> None:
    home = wheel if installed == "wheel" else ROOT
    done = python(home, *entry(way, tmp_path), "recipes", before=str(foreign), after=str(foreign), cwd=foreign)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout
    assert "foreign" not in done.stdout


@pytest.mark.parametrize("place", ["before", "after", "cwd"])
@pytest.mark.parametrize("installed", ["wheel", "checkout"])
def test_a_notebook_gets_the_packages_beside_harness(
    installed: str, place: str, wheel: Path, foreign: Path, tmp_path: Path
) -> None:
    home = wheel if installed == "wheel" else ROOT
    code = (
        "import harness; harness.api; import methods.library, reports.folder as r; "
        "print(methods.__file__, r.__file__, sep='\\n')"
    )
    elsewhere = {} if place == "cwd" else {place: str(foreign)}
    done = python(home, "-c", code, **elsewhere, cwd=foreign if place == "cwd" else tmp_path)
    assert done.stdout.splitlines() == [str(home / "methods/__init__.py"), str(home / "reports/folder.py")], done.stderr


def test_another_package_that_is_imported_first_is_named(wheel: Path, foreign: Path) -> None:
    (foreign / "methods" / "__init__.py").write_text("")
    done = python(wheel, "-c", "import methods; from harness import api", cwd=foreign)
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert f"package methods: found {foreign / 'methods'}, which is imported already" in told
    assert f"expected {wheel / 'methods'}, which stands beside harness" in told


def test_the_command_line_says_so_without_a_traceback(wheel: Path, foreign: Path, tmp_path: Path) -> None:
    (foreign / "reports" / "__init__.py").write_text("")
    (foreign / "sitecustomize.py").write_text("import reports\n")  # what an environment may load at start
    done = python(wheel, *entry("script", tmp_path), "recipes", before=str(foreign), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: package reports: found {foreign / 'reports'}, ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["methods", "reports", "recipes"])
def test_what_does_not_stand_beside_harness_is_not_looked_for_elsewhere(
    name: str, wheel: Path, foreign: Path, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    shutil.copytree(wheel / "harness", part / "harness")
    for other in {"methods", "reports", "recipes"} - {name}:
        (part / other).symlink_to(wheel / other)
    done = python(part, "-m", "harness", "recipes", after=str(foreign), cwd=tmp_path)
    assert done.returncode == 2
    assert f"{part / name}: found no such folder; expected what stands beside harness." in done.stderr


def test_importing_the_api_loads_no_heavy_library() -> None:
    code = "import sys, harness.api; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in python(ROOT, "-c", code, cwd=ROOT).stdout.split()}
    assert not loaded & {"torch", "transformers", "pandas", "numpy", "pydantic", "methods", "reports"}
