"""Where LIBERO's scenes (MJCF, meshes, textures) come from, and its import without a prompt.

The folder is, in this order:

1. ``EMBODIED_RL_LIBERO_ASSETS``: a folder, or a tar archive that is unpacked once into the user's
   cache (into a folder named after its content, complete or not at all);
2. ``assets`` inside the installed ``libero`` package, if somebody put it there;
3. the copy in the user's cache, downloaded from the Hugging Face hub when it is not there yet.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from embodied_rl.doctor import gl_backend

ASSETS_VARIABLE = "EMBODIED_RL_LIBERO_ASSETS"
HUB_REPOSITORY = "lerobot/libero-assets"
PARTS = ("articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects")
"""Folders that any copy of the assets has."""
INSTALL = "pip install 'embodied-rl[libero]' && pip install --no-deps hf-libero==0.1.4"
ROBOSUITE_CHATTER = ("macro file", "setup_macros.py")
"""Parts of the three lines that robosuite warns with at import; others come through."""


def cache_folder() -> Path:
    """The user's cache of this project: ``$XDG_CACHE_HOME/embodied-rl``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "embodied-rl"


def package_folder() -> Path:
    """Folder of the installed LIBERO package, found without importing it.

    Raises:
        ValueError: it is not installed.
    """
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"LIBERO is not installed: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations))) / "libero"


def hub_folder() -> Path:
    """Where the download from the hub lies, or would."""
    return cache_folder() / "libero" / "hub"


def find_assets() -> Path | None:
    """The assets as they are on this machine, or None if only a download can get them.

    Raises:
        ValueError: ``EMBODIED_RL_LIBERO_ASSETS`` leads to no assets, or LIBERO is not installed.
    """
    named = os.environ.get(ASSETS_VARIABLE)
    if named:
        return _named_assets(Path(named).expanduser())
    for folder in (package_folder() / "assets", hub_folder()):
        if complete(folder):
            return folder
    return None


def complete(folder: Path) -> bool:
    """Whether ``folder`` holds the assets."""
    return all((folder / part).is_dir() for part in PARTS)


def assets_folder() -> Path:
    """The assets, downloaded from the hub if they are not on this machine.

    Raises:
        ValueError: they cannot be had; the message has the command that gets them.
    """
    found = find_assets()
    if found is not None:
        return found
    try:
        return _download(hub_folder())
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"LIBERO's scenes are not on this machine and the hub does not answer "
            f"({type(error).__name__}): get them with `{download_command()}`, or set "
            f"{ASSETS_VARIABLE} to a folder or tar archive of them"
        ) from error


def download_command() -> str:
    """What to type on a machine with internet."""
    return f"hf download {HUB_REPOSITORY} --repo-type dataset --local-dir {hub_folder()}"


def _download(folder: Path) -> Path:
    from huggingface_hub import snapshot_download

    partial = folder.with_name(f"{folder.name}.partial")  # goes on after an interruption
    snapshot_download(repo_id=HUB_REPOSITORY, repo_type="dataset", local_dir=partial)
    if not complete(partial):
        raise ValueError(f"{HUB_REPOSITORY} lacks one of {', '.join(PARTS)}")
    partial.rename(folder)
    return folder


def _named_assets(path: Path) -> Path:
    folder = _unpacked(path) if path.is_file() else path
    for candidate in (folder, folder / "assets"):
        if complete(candidate):
            return candidate
    raise ValueError(
        f"{ASSETS_VARIABLE}={path} has no folders {', '.join(PARTS)}: set it to LIBERO's `assets` "
        "folder or to a tar archive of it"
    )


def _unpacked(archive: Path) -> Path:
    """Unpack once; several processes may do so at a time, the first one wins."""
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    folder = cache_folder() / "libero" / f"archive-{digest}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix="unpacking-"))
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        partial.rename(folder)
    except tarfile.TarError as error:
        raise ValueError(f"{ASSETS_VARIABLE}={archive} is not a tar archive: {error}") from error
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def import_libero(assets: Path) -> Any:
    """``libero.libero`` with its paths set, imported without a question on standard input.

    LIBERO asks where to put its data when it finds no ``config.yaml``, so it gets one of ours.

    Args:
        assets: folder of its scenes.

    Raises:
        ValueError: LIBERO or what it needs is not installed.
    """
    config = _write_config(assets)
    backend = gl_backend()
    if backend is None:
        raise ValueError(
            "robosuite needs the system library EGL or OSMesa, also without pictures: "
            "apt-get install libegl1 libgl1-mesa-dri"
        )
    os.environ["MUJOCO_GL"] = backend  # read once, when mujoco is imported
    before = os.environ.get("LIBERO_CONFIG_PATH")
    os.environ["LIBERO_CONFIG_PATH"] = str(config)
    logger = logging.getLogger("robosuite_logs")
    logger.addFilter(_not_chatter)
    try:
        libero: Any = importlib.import_module("libero.libero")
        importlib.import_module("libero.libero.envs.bddl_utils")
    except ImportError as error:
        raise ValueError(f"LIBERO cannot be imported ({error}): {INSTALL}") from error
    finally:
        logger.removeFilter(_not_chatter)
        if before is None:
            del os.environ["LIBERO_CONFIG_PATH"]
        else:
            os.environ["LIBERO_CONFIG_PATH"] = before
    # hf-libero reads the folder of its assets from this variable, not from the configuration.
    libero._assets_path_cache = str(assets)
    return libero


def _not_chatter(record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in ROBOSUITE_CHATTER)


def _write_config(assets: Path) -> Path:
    """A folder with a ``config.yaml``, one per assets folder; returns the folder."""
    package = package_folder()
    lines = {
        "benchmark_root": package,
        "bddl_files": package / "bddl_files",
        "init_states": package / "init_files",
        "datasets": cache_folder() / "libero" / "datasets",
        "assets": assets,
    }
    text = "".join(f"{name}: {path}\n" for name, path in lines.items())
    folder = cache_folder() / "libero" / f"config-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not (folder / "config.yaml").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"config.{os.getpid()}"
        partial.write_text(text)
        partial.rename(folder / "config.yaml")
    return folder
