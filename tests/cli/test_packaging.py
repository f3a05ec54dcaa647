"""The wheel holds the whole package, imports anywhere, and the guards say what is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LINKED = ("envs", "policies", "configs", "assets")
SHIPPED = ("embodied_rl", *LINKED, "pyproject.toml", "README.md", "LICENSE")


def run(
    *command: str, cwd: Path, path: Path | None = None, timeout: float = 120.0
) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def copy_sources(target: Path) -> Path:
    """A checkout without anything that was built in it."""
    target.mkdir(parents=True)
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, target / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(source, target / name)
    return target


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a wheel made from a source distribution made from a checkout."""
    checkout = copy_sources(tmp_path_factory.mktemp("packaging") / "checkout")
    out = checkout.parent / "dist"
    result = run("-m", "build", "--no-isolation", "--outdir", str(out), cwd=checkout)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return out


@pytest.fixture(scope="session")
def unzipped(built: Path) -> Path:
    folder = built / "unzipped"
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


def files_of_package(suffix: str = "") -> set[str]:
    """Files reached through the package, symlinked folders included, relative to the top."""
    return {
        os.path.relpath(Path(folder) / name, ROOT)
        for folder, _, names in os.walk(ROOT / "embodied_rl", followlinks=True)
        for name in names
        if name.endswith(suffix) and not folder.endswith("__pycache__")
    }


def test_wheel_holds_the_package_and_nothing_else(unzipped: Path) -> None:
    shipped = {str(f.relative_to(unzipped)) for f in unzipped.rglob("*.py")}
    assert "embodied_rl/envs/__init__.py" in shipped
    assert shipped == files_of_package(".py")


def test_wheel_carries_licence_types_marker_and_console_script(unzipped: Path) -> None:
    (info,) = unzipped.glob("*.dist-info")
    assert "Apache License" in (info / "licenses" / "LICENSE").read_text()
    assert "embodied-rl = embodied_rl.cli:main" in (info / "entry_points.txt").read_text()
    assert "License-Expression: Apache-2.0" in (info / "METADATA").read_text()
    assert (unzipped / "embodied_rl" / "py.typed").exists()


def test_wheel_ships_the_data_files_of_assets(unzipped: Path) -> None:
    assets = {name for name in files_of_package() if name.startswith("embodied_rl/assets/")}
    assert [name for name in assets if not (unzipped / name).exists()] == []


def test_wheel_imports_outside_the_checkout(unzipped: Path, tmp_path: Path) -> None:
    code = (
        "import embodied_rl, embodied_rl.registry, embodied_rl.rollout\n"
        "import embodied_rl.envs, embodied_rl.policies, embodied_rl.configs, embodied_rl.assets\n"
        "print(embodied_rl.__file__); print(embodied_rl.envs.__file__)"
    )
    result = run("-c", code, cwd=tmp_path, path=unzipped)
    assert result.returncode == 0, result.stderr
    assert all(line.startswith(str(unzipped)) for line in result.stdout.split())


@pytest.mark.parametrize("name", LINKED)
def test_bare_import_from_the_top_folder_is_refused(name: str) -> None:
    result = run("-c", f"import {name}", cwd=ROOT)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ") and f"embodied_rl.{name}" in last


@pytest.mark.parametrize("name", LINKED)
def test_symlinks_are_relative_and_lead_to_the_real_folder(name: str) -> None:
    link = ROOT / "embodied_rl" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"


def test_checkout_without_symlinks_says_so_in_one_sentence(tmp_path: Path) -> None:
    checkout = copy_sources(tmp_path / "checkout")
    for name in LINKED:
        link = checkout / "embodied_rl" / name
        link.unlink()
        link.write_text(f"../{name}")
    result = run("-c", "import embodied_rl", cwd=checkout)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "ImportError: this checkout has text files where it should have symlinks"
    )
    assert "core.symlinks" in last
