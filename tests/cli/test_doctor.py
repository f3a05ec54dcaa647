"""What is missing is found and every such line says how to mend it; nothing heavy is imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from embodied_rl import doctor
from embodied_rl.doctor import Check, diagnose, gl_backend


def find(name: str) -> Check:
    return next(check for check in diagnose() if check.name == name)


def pretend(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    """Only these packages are installed."""

    def version(package: str) -> str:
        if package not in versions:
            raise PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(doctor, "version", version)


def pretend_package(monkeypatch: pytest.MonkeyPatch, requirements: list[str]) -> None:
    class Metadata:
        def get_all(self, _: str) -> list[str]:
            return ["metaworld", "atari", "all"]

    monkeypatch.setattr(doctor, "metadata", lambda _: Metadata())
    monkeypatch.setattr(doctor, "requires", lambda _: requirements)


def loading(monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
    def load(name: str) -> None:
        if name not in libraries:
            raise OSError(name)

    monkeypatch.setattr(doctor.ctypes, "CDLL", load)


def gpu_stub(monkeypatch: pytest.MonkeyPatch, run: Callable[..., object]) -> None:
    monkeypatch.setattr(doctor.subprocess, "run", run)


def test_every_line_that_is_not_ok_says_how_to_mend_it() -> None:
    checks = diagnose()
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.detail for check in checks)
    assert all(check.mend for check in checks if not check.ok)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from embodied_rl.doctor import diagnose; diagnose(); "
        "print({'torch', 'mujoco', 'gymnasium', 'envpool', 'numpy'} & set(sys.modules))"
    )
    root = Path(__file__).parent.parent.parent
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"


def test_extras_are_checked_against_what_the_package_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_package(
        monkeypatch,
        [
            "numpy>=2.0",
            'metaworld==3.1.1; extra == "metaworld"',
            'mujoco==3.3.0; extra == "metaworld"',
            'ale-py==0.12.1; extra == "atari"',
            'winonly==1; platform_system == "Windows" and extra == "atari"',
            'embodied-rl[metaworld]; extra == "all"',
        ],
    )
    pretend(monkeypatch, {"metaworld": "3.1.1", "mujoco": "4.0.0", "ale-py": "0.12.1"})
    metaworld, atari = find("metaworld"), find("atari")
    assert not metaworld.ok
    assert metaworld.detail == "lacks mujoco==3.3.0 (found 4.0.0)"
    assert metaworld.mend == "pip install 'embodied-rl[metaworld]'"
    assert atari == Check("atari", True, "ale-py 0.12.1")
    assert "all" not in {check.name for check in diagnose()}


def test_a_checkout_that_was_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def metadata(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "metadata", metadata)
    assert "pip install -e ." in find("extras").mend


def test_gpu_with_a_cpu_build_of_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    result = subprocess.CompletedProcess([], 0, stdout="NVIDIA H200, 570.1, 143771 MiB\n")
    gpu_stub(monkeypatch, lambda *_, **__: result)
    pretend(monkeypatch, {"torch": "2.13.0+cpu"})
    assert not find("gpu").ok
    assert "H200" in find("gpu").detail
    assert find("gpu").mend
    pretend(monkeypatch, {"torch": "2.13.0"})
    assert find("gpu").ok


@pytest.mark.parametrize(
    "error", [FileNotFoundError("nvidia-smi"), subprocess.CalledProcessError(9, "nvidia-smi")]
)
def test_no_gpu_is_fine(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise error

    gpu_stub(monkeypatch, run)
    assert find("gpu").ok
    assert "CPU" in find("gpu").detail


@pytest.mark.parametrize(
    ("libraries", "wanted", "expected"),
    [
        (("libEGL.so.1", "libOSMesa.so.8"), "", "egl"),
        (("libOSMesa.so.6",), "", "osmesa"),
        ((), "", None),
        (("libEGL.so.1", "libOSMesa.so.8"), "osmesa", "osmesa"),
        (("libEGL.so.1",), "osmesa", None),
        (("libEGL.so.1",), "disable", None),
    ],
)
def test_drawing_takes_egl_then_osmesa_unless_told(
    libraries: tuple[str, ...],
    wanted: str,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MUJOCO_GL", wanted)
    loading(monkeypatch, *libraries)
    assert gl_backend() == expected
    assert find("drawing").ok == (expected is not None)


def test_vulkan_needs_a_library_and_a_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "VULKAN_DRIVERS", (str(tmp_path),))
    for variable in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        monkeypatch.delenv(variable, raising=False)
    loading(monkeypatch, "libvulkan.so.1")
    assert not find("vulkan").ok
    (tmp_path / "lvp_icd.x86_64.json").write_text("{}")
    assert find("vulkan").detail == "lvp_icd.x86_64"
    loading(monkeypatch)
    assert not find("vulkan").ok


def test_a_disk_that_is_nearly_full_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=2**30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert not find("disk").ok
    assert "1.0 GiB" in find("disk").detail


def test_a_symlink_that_leads_nowhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.find_spec
    monkeypatch.setattr(
        doctor, "find_spec", lambda name: None if name.endswith("policies") else real(name)
    )
    assert "embodied_rl/policies leads nowhere" in find("symlinks").detail


def test_missing_libero_and_missing_scenes_come_with_the_command_that_gets_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from embodied_rl.envs.libero import assets

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(assets.ASSETS_VARIABLE, raising=False)
    monkeypatch.setattr(assets, "package_folder", lambda: tmp_path)
    pretend(monkeypatch, {})
    assert not find("libero scenes").ok and "hf-libero" in find("libero scenes").mend
    pretend(monkeypatch, {"hf-libero": "0.1.4"})
    missing = find("libero scenes")
    assert not missing.ok and missing.mend.startswith("hf download lerobot/libero-assets")
    monkeypatch.setenv(assets.ASSETS_VARIABLE, str(tmp_path / "nowhere"))
    assert not find("libero scenes").ok
    for part in assets.PARTS:
        (tmp_path / "assets" / part).mkdir(parents=True)
    monkeypatch.setenv(assets.ASSETS_VARIABLE, str(tmp_path))
    assert find("libero scenes").ok and find("libero scenes").detail.endswith("assets")


def test_maniskill_tasks_that_need_files_are_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, {"mani-skill": "3.0.1"})
    monkeypatch.setenv("MS_ASSET_DIR", str(tmp_path))
    assert not find("maniskill assets").ok
    assert "download_asset" in find("maniskill assets").mend
    (tmp_path / "data" / "assets").mkdir(parents=True)
    assert find("maniskill assets").ok
    pretend(monkeypatch, {})
    assert "maniskill assets" not in {check.name for check in diagnose()}
