"""What CONTRIBUTING.md shows is done here, from outside of the package, and works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of CONTRIBUTING.md, installed as pip would have left them."""
    folder = tmp_path_factory.mktemp("lab")
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = re.findall(r"```python\n# (\S+)\n(.*?)```", text, re.DOTALL)
    assert len(files) == 3
    for name, content in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    (toml,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    groups = tomllib.loads(toml)["project"]["entry-points"]
    info = folder / "my_lab-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-lab\nVersion: 0.1\n")
    lines = [
        line
        for group, points in groups.items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


def cli(lab: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "embodied_rl.cli", *arguments],
        cwd=lab,
        env={**os.environ, "PYTHONPATH": f"{lab}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [("envs", "thermostat"), ("advantages", "median_baseline"), ("recipes", "thermostat_ppo")],
)
def test_parts_of_another_package_are_listed(kind: str, name: str, lab: Path) -> None:
    assert name in cli(lab, "list", kind).stdout.split()


def test_parts_of_another_package_run_together(lab: Path) -> None:
    result = cli(
        lab, "train", "thermostat_ppo", "--total-env-steps", "2048", "--evaluation.episodes", "4"
    )
    assert result.returncode == 0, result.stderr
    run = lab / result.stdout.splitlines()[-1]
    assert (run / "metrics.jsonl").exists()
    assert "median_baseline" in (run / "config.yaml").read_text()


def test_options_of_another_package_are_checked(lab: Path) -> None:
    result = cli(lab, "explain", "thermostat_ppo", "--advantage.scal", "2")
    assert result.returncode != 0
    assert "scale" in result.stderr
