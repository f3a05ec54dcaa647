"""What this machine can run, and how to mend what it cannot; nothing heavy is imported."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path

GL_LIBRARIES = {
    "egl": ("libEGL.so.1",),
    "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6"),
    "glfw": ("libGL.so.1",),
}
"""Shared libraries behind each value of MUJOCO_GL; any one of them is enough."""
VULKAN_DRIVERS = ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d")
MIN_FREE_GIB = 2.0
"""A run folder with its checkpoints is far smaller; an environment with simulators is not."""


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, whether it is there, what was found, how to mend it."""

    name: str
    ok: bool
    detail: str
    mend: str = ""


def diagnose() -> list[Check]:
    """Look at everything; takes about a tenth of a second (a second with an NVIDIA GPU)."""
    return [
        _python(),
        _package(),
        *_torch_and_gpu(),
        _cores(),
        _disk(Path.cwd()),
        _drawing(),
        _vulkan(),
        *_maniskill_assets(),
        *_extras(),
        _libero(),
    ]


def gl_backend() -> str | None:
    """The value of MUJOCO_GL that can draw without a screen here, or None.

    A value that the user has set is taken if its library loads; else ``egl``, else ``osmesa``.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    candidates = [wanted] if wanted else ["egl", "osmesa"]
    return next((name for name in candidates if _any_loads(GL_LIBRARIES.get(name, ()))), None)


def _any_loads(names: Iterable[str]) -> bool:
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    ok = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check("python", ok, found, "simulators have wheels for Python 3.11, 3.12 and 3.13")


def _package() -> Check:
    folders = ("envs", "policies", "configs", "assets")
    broken = [name for name in folders if find_spec(f"embodied_rl.{name}") is None]
    if broken:
        mend = "run `git config core.symlinks true && git checkout -- embodied_rl`"
        return Check("symlinks", False, f"embodied_rl/{broken[0]} leads nowhere", mend)
    return Check("symlinks", True, "envs, policies, configs and assets are found")


def _torch_and_gpu() -> list[Check]:
    gpu, torch = _gpu_name(), _version("torch")
    on_cpu = "training runs on the CPU"
    if torch is None:
        return [Check("torch", False, "not installed", "pip install torch==2.13.0")]
    checks = [Check("torch", True, torch)]
    if gpu is None:
        return [*checks, Check("gpu", True, f"no NVIDIA GPU, {on_cpu}")]
    if torch.endswith("+cpu"):
        mend = "pip uninstall torch && pip install torch==2.13.0"
        return [*checks, Check("gpu", False, f"{gpu}, but torch is a CPU build: {on_cpu}", mend)]
    return [*checks, Check("gpu", True, gpu)]


def _gpu_name() -> str | None:
    command = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total",
        "--format=csv,noheader",
    ]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip().replace("\n", "; ") or None


def _cores() -> Check:
    cores, threads = os.cpu_count() or 1, os.environ.get("OMP_NUM_THREADS", "")
    detail = f"{cores} cores, OMP_NUM_THREADS={threads or 'unset'}"
    mend = "set OMP_NUM_THREADS=1: the threads of torch and of simulators slow each other down"
    return Check("threads", threads == "1", detail, mend)


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / 2**30
    mend = f"free some space, or run in another folder: at least {MIN_FREE_GIB:.0f} GiB"
    return Check("disk", free >= MIN_FREE_GIB, f"{free:.1f} GiB free in {folder}", mend)


def _drawing() -> Check:
    backend = gl_backend()
    if backend is not None:
        return Check("drawing", True, f"MUJOCO_GL={backend}")
    chosen = os.environ.get("MUJOCO_GL")
    detail = f"MUJOCO_GL={chosen} does not load" if chosen else "neither EGL nor OSMesa is found"
    mend = "for videos: apt-get install libegl1 libgl1 libgl1-mesa-dri"
    return Check("drawing", False, detail, f"{mend}, and unset MUJOCO_GL" if chosen else mend)


def _vulkan() -> Check:
    mend = (
        "ManiSkill's observations with pictures need it (states and films do not): apt-get "
        "install libvulkan1 "
        "mesa-vulkan-drivers; Mesa 25 or newer, on Debian 12 from bookworm-backports "
        "(apt-get install -t bookworm-backports mesa-vulkan-drivers)"
    )
    if not _any_loads(("libvulkan.so.1",)):
        return Check("vulkan", False, "libvulkan is not found", mend)
    named = os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES")
    files = [path for folder in VULKAN_DRIVERS for path in Path(folder).glob("*.json")]
    if not named and not files:
        return Check("vulkan", False, "libvulkan without a driver", mend)
    return Check("vulkan", True, named or ", ".join(sorted(path.stem for path in files)))


def _maniskill_assets() -> list[Check]:
    """What tasks of ManiSkill have to download, where it is installed and lacks some."""
    if _version("mani-skill") is None:
        return []
    root = Path(os.environ.get("MS_ASSET_DIR", "~/.maniskill")).expanduser() / "data"
    if root.is_dir() and any(root.iterdir()):
        return [Check("maniskill assets", True, f"downloaded files in {root}")]
    detail = f"45 of 74 tasks run, the others need files and {root} has none"
    mend = "python -m mani_skill.utils.download_asset TASK, e.g. TurnFaucet-v1, or ycb"
    return [Check("maniskill assets", False, detail, mend)]


def _extras() -> list[Check]:
    """One line per extra, from the requirements that were installed with the package."""
    try:
        extras = metadata("embodied-rl").get_all("Provides-Extra") or []
    except PackageNotFoundError:
        mend = "run `pip install -e .` in the checkout"
        return [Check("extras", False, "embodied-rl is imported but not installed", mend)]
    return [_extra(name) for name in extras if name != "all"]


def _extra(extra: str) -> Check:
    from packaging.requirements import Requirement

    found, lacking = [], []
    for line in requires("embodied-rl") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if (
            marker is None
            or marker.evaluate({"extra": ""})
            or not marker.evaluate({"extra": extra})
        ):
            continue
        if requirement.name == "embodied-rl":
            continue  # another extra, which has its own line
        present = _version(requirement.name)
        if present is not None and requirement.specifier.contains(present, prereleases=True):
            found.append(f"{requirement.name} {present}")
        else:
            have = f" (found {present})" if present else ""
            lacking.append(f"{requirement.name}{requirement.specifier}{have}")
    mend = f"pip install 'embodied-rl[{extra}]'"
    if lacking:
        return Check(extra, False, f"lacks {', '.join(lacking)}", mend)
    return Check(extra, True, ", ".join(found) or "nothing to install on this system")


def _libero() -> Check:
    """LIBERO's package, which its extra cannot name, and its scenes; nothing is downloaded."""
    from embodied_rl.envs.libero import assets

    name = "libero scenes"
    if _version("hf-libero") is None:
        return Check(name, False, "hf-libero is not installed", assets.INSTALL)
    try:
        folder = assets.find_assets()
    except ValueError as error:
        mend = f"unset {assets.ASSETS_VARIABLE}, or set it to a folder or archive of the scenes"
        return Check(name, False, str(error), mend)
    if folder is None:
        return Check(name, False, "not on this machine", assets.download_command())
    return Check(name, True, str(folder))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
