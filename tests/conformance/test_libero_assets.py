"""Where LIBERO's scenes come from, with a local stand-in for the hub, and its import."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import pytest

from embodied_rl.envs.libero import assets

pytest.importorskip("robosuite", reason="LIBERO is not installed: scripts/setup.sh libero,...")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(assets.ASSETS_VARIABLE, raising=False)
    package = tmp_path / "package" / "libero"
    package.mkdir(parents=True)
    monkeypatch.setattr(assets, "package_folder", lambda: package)
    return tmp_path / "cache" / "embodied-rl"


def write_scenes(folder: Path) -> Path:
    for part in assets.PARTS:
        (folder / part).mkdir(parents=True)
        (folder / part / "scene.xml").write_text(part)
    return folder


def stand_in(monkeypatch, download) -> list[dict]:
    calls: list[dict] = []

    def snapshot_download(**options):
        calls.append(options)
        download(Path(options["local_dir"]))

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return calls


def test_the_hub_is_asked_once(monkeypatch, cache):
    calls = stand_in(monkeypatch, write_scenes)
    assert assets.find_assets() is None
    folder = assets.assets_folder()
    assert folder == assets.assets_folder() == assets.find_assets()
    assert (folder / "scenes" / "scene.xml").read_text() == "scenes" and folder.is_relative_to(
        cache
    )
    assert [call["repo_id"] for call in calls] == ["lerobot/libero-assets"]
    assert calls[0]["repo_type"] == "dataset"


@pytest.mark.parametrize("half", [False, True], ids=["no-answer", "breaks-off"])
def test_a_download_that_fails_says_what_to_type_and_leaves_no_scenes(monkeypatch, half):
    def download(folder: Path) -> None:
        if half:
            write_scenes(folder)
        raise OSError("no route to host")

    stand_in(monkeypatch, download)
    with pytest.raises(
        ValueError, match=r"hf download lerobot/libero-assets .*--local-dir"
    ) as told:
        assets.assets_folder()
    assert assets.ASSETS_VARIABLE in str(told.value) and "\n" not in str(told.value)
    assert assets.find_assets() is None


def test_an_incomplete_repository_is_not_taken(monkeypatch):
    stand_in(monkeypatch, lambda folder: (folder / "scenes").mkdir(parents=True))
    with pytest.raises(ValueError, match="hf download"):
        assets.assets_folder()


@pytest.mark.parametrize("inner", ["", "assets"], ids=["itself", "inside"])
def test_a_folder_is_taken_as_it_is(monkeypatch, tmp_path, inner):
    folder = write_scenes(tmp_path / "mine" / inner)
    monkeypatch.setenv(assets.ASSETS_VARIABLE, str(tmp_path / "mine"))
    assert assets.assets_folder() == folder


def test_an_archive_is_unpacked_once(monkeypatch, tmp_path, cache):
    write_scenes(tmp_path / "assets")
    archive = tmp_path / "assets.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(tmp_path / "assets", "assets")
    monkeypatch.setenv(assets.ASSETS_VARIABLE, str(archive))
    folder = assets.assets_folder()
    assert (folder / "scenes" / "scene.xml").read_text() == "scenes" and folder.is_relative_to(
        cache
    )
    (folder / "seen").touch()
    assert assets.assets_folder() == folder and (folder / "seen").exists()
    assert not list(cache.rglob("unpacking-*"))


def test_what_is_no_archive_and_what_holds_no_scenes_is_said(monkeypatch, tmp_path, cache):
    broken = tmp_path / "broken.tar.xz"
    broken.write_text("nothing")
    monkeypatch.setenv(assets.ASSETS_VARIABLE, str(broken))
    with pytest.raises(ValueError, match="is not a tar archive"):
        assets.assets_folder()
    assert not list(cache.rglob("archive-*")) and not list(cache.rglob("unpacking-*"))
    monkeypatch.setenv(assets.ASSETS_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="articulated_objects"):
        assets.assets_folder()


def test_libero_is_imported_without_a_question_or_a_warning(tmp_path):
    code = """
import os, sys
from pathlib import Path
from embodied_rl.envs.libero.assets import import_libero
libero = import_libero(Path(sys.argv[1]))
assert libero.get_assets_path() == sys.argv[1]
assert "LIBERO_CONFIG_PATH" not in os.environ
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "LIBERO_CONFIG_PATH"}
    result = subprocess.run(
        [sys.executable, "-c", code, str(write_scenes(tmp_path / "scenes"))],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment | {"HOME": str(home), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == "" and result.stdout == ""
    assert not (home / ".libero").exists()
