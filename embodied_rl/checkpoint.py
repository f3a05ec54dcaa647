"""Checkpoints: a tree of state in a folder, written whole or not at all, read without unpickling.

A checkpoint is a folder of two files:

* ``tensors.safetensors``: every tensor and array, named ``<number>:<path in the tree>``;
* ``state.json``: format version, library version, size and SHA-256 of the tensors, and the tree
  with a reference where a tensor was. JSON has no tuples, integer keys, NaN or tensors; those are
  objects with a ``"$"`` key, so that a tree comes back exactly as it went in.

Writing goes to a hidden folder beside the target, is flushed to the disk, and is then renamed. A
full disk, Ctrl-C or a crash leaves the target as it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from embodied_rl import __version__

FORMAT: Final = "embodied-rl checkpoint"
FORMAT_VERSION: Final = 1
STATE_FILE: Final = "state.json"
TENSORS_FILE: Final = "tensors.safetensors"

Tree = Any
"""Nested dicts, lists and tuples of tensors, arrays, numbers, strings, booleans and None."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or written; the message says what to do."""


# --- tree <-> JSON and tensors ---------------------------------------------------------------


def _encode(value: Tree, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON form of ``value``; its tensors are added to ``tensors``."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$": "float", "value": str(value)}
    if isinstance(value, Tensor):
        return {"$": "tensor", "name": _store(value.detach(), path, tensors)}
    if isinstance(value, np.ndarray | np.generic):
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {"$": kind, "name": _store(_from_numpy(np.asarray(value), path), path, tensors)}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$": "tuple", "items": items}
    if isinstance(value, Mapping):
        return _encode_mapping(value, path, tensors)
    raise CheckpointError(
        f"cannot save {path} of type {type(value).__name__}: a checkpoint holds tensors, arrays, "
        "numbers, strings, lists and dicts"
    )


def _encode_mapping(value: Mapping[Any, Tree], path: str, tensors: dict[str, Tensor]) -> Any:
    for key in value:
        if type(key) not in (str, int):
            raise CheckpointError(f"cannot save {path}: its key {key!r} is neither text nor whole")
    items = [(key, _encode(item, f"{path}/{key}", tensors)) for key, item in value.items()]
    if all(type(key) is str for key in value) and "$" not in value:
        return dict(items)
    return {"$": "dict", "items": [[key, item] for key, item in items]}


def _from_numpy(array: np.ndarray, path: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except TypeError as error:
        raise CheckpointError(f"cannot save {path}: an array of dtype {array.dtype}") from error


def _store(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise CheckpointError(f"cannot save {path}: make it a dense tensor first")
    name = f"{len(tensors)}:{path.lstrip('/')}"
    # A copy, because the file format refuses tensors that share memory.
    tensors[name] = tensor.to("cpu", copy=True).contiguous()
    return name


def _decode(data: Any, tensors: Mapping[str, Tensor]) -> Tree:
    """Undo ``_encode``."""
    if isinstance(data, list):
        return [_decode(item, tensors) for item in data]
    if not isinstance(data, dict):
        return data
    match data.get("$"):
        case None:
            return {key: _decode(item, tensors) for key, item in data.items()}
        case "float":
            return float(data["value"])
        case "tensor":
            return tensors[data["name"]]
        case "array":
            return tensors[data["name"]].numpy()
        case "scalar":
            return tensors[data["name"]].numpy()[()]
        case "tuple":
            return tuple(_decode(item, tensors) for item in data["items"])
        case "dict":
            return {key: _decode(item, tensors) for key, item in data["items"]}
        case kind:
            raise KeyError(kind)


# --- writing ---------------------------------------------------------------------------------


def save(folder: str | Path, tree: Tree, *, info: Mapping[str, Any] | None = None) -> None:
    """Write ``tree`` to ``folder``, replacing a checkpoint that is there.

    Holds one copy of all tensors in memory while writing.

    Args:
        folder: checkpoint folder; missing parents are made.
        tree: nested state.
        info: numbers and strings that ``read_info`` returns without reading the tensors.

    Raises:
        CheckpointError: something in the tree cannot be saved, or the disk is full or read-only.
            Whatever was at ``folder`` before is still there.
    """
    folder, info = Path(folder), dict(info or {})
    tensors: dict[str, Tensor] = {}
    encoded = _encode(tree, "", tensors)
    try:
        data = safetensors.torch.save(tensors)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"cannot save the tensors of {folder}: {error}") from error
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "tensors_bytes": len(data),
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
        "state_sha256": _digest(encoded, info),
        "info": info,
        "tree": encoded,
    }
    files = {TENSORS_FILE: data, STATE_FILE: json.dumps(header, indent=1).encode()}
    try:
        _write_folder(folder, files)
    except OSError as error:
        raise CheckpointError(_explain(error, folder, len(data))) from error


def _digest(tree: Any, info: Any) -> str:
    return hashlib.sha256(json.dumps([tree, info], separators=(",", ":")).encode()).hexdigest()


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.parent / f".{folder.name}.unfinished-{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        for name, data in files.items():
            _write_file(unfinished / name, data)
        _flush_folder(unfinished)
        _rename(unfinished, folder)
    finally:
        # Gone already unless something stopped us, Ctrl-C included.
        shutil.rmtree(unfinished, ignore_errors=True)
    _flush_folder(folder.parent)


def _write_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(source: Path, target: Path) -> None:
    """Put ``source`` in the place of ``target``; a folder in use cannot be replaced in one call."""
    if not target.exists():
        source.rename(target)
        return
    if not (target / STATE_FILE).is_file():
        raise CheckpointError(f"{target} exists and is no checkpoint: choose another folder")
    retired = target.parent / f".{target.name}.retired-{os.getpid()}"
    shutil.rmtree(retired, ignore_errors=True)
    try:
        target.rename(retired)
        source.rename(target)
    finally:
        if not target.exists():
            retired.rename(target)
    shutil.rmtree(retired, ignore_errors=True)


def _explain(error: OSError, folder: Path, size: int) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full: checkpoint {folder} needs {size / 2**20:.1f} MiB; earlier "
            "checkpoints are untouched, free some space and resume from the last one"
        )
    return f"cannot write checkpoint {folder}: {error.strerror or error}"


# --- reading ---------------------------------------------------------------------------------


def load(folder: str | Path) -> Tree:
    """Read the tree that ``save`` wrote; tensors are on the CPU.

    Raises:
        CheckpointError: no such folder, not a checkpoint of this library, written by a newer
            version, cut short, or damaged.
    """
    folder = Path(folder)
    header = _read_header(folder)
    data = _read_tensors(folder, header)
    try:
        return _decode(header["tree"], safetensors.torch.load(data))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _damaged(folder, f"its parts do not fit together ({error})") from error


def read_info(folder: str | Path) -> dict[str, Any]:
    """The ``info`` given to ``save``, without reading the tensors.

    Raises:
        CheckpointError: as ``load``, as far as ``state.json`` tells.
    """
    return dict(_read_header(Path(folder))["info"])


def verify(folder: str | Path) -> None:
    """Check that ``load`` would get every byte that ``save`` wrote.

    Raises:
        CheckpointError: as ``load``.
    """
    _read_tensors(Path(folder), _read_header(Path(folder)))


def _read_header(folder: Path) -> dict[str, Any]:
    if not folder.exists():
        raise CheckpointError(f"there is no checkpoint at {folder}")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file: give the checkpoint folder that holds it")
    if not (folder / STATE_FILE).is_file():
        raise CheckpointError(f"{folder} is not a checkpoint of embodied-rl: no {STATE_FILE} in it")
    try:
        header = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, f"{STATE_FILE} is cut short or no JSON") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(f"{folder} is not a checkpoint of embodied-rl: {STATE_FILE} is alien")
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has checkpoint format {version} (embodied-rl {header.get('library_version')}"
            f"), this is embodied-rl {__version__} which reads format {FORMAT_VERSION}: install "
            "the version that wrote it"
        )
    if not header.keys() >= {"tensors_bytes", "tensors_sha256", "state_sha256", "info", "tree"}:
        raise _damaged(folder, f"{STATE_FILE} lacks a part")
    if _digest(header["tree"], header["info"]) != header["state_sha256"]:
        raise _damaged(folder, f"{STATE_FILE} was changed after it was written")
    return header


def _read_tensors(folder: Path, header: Mapping[str, Any]) -> bytes:
    path = folder / TENSORS_FILE
    if not path.is_file():
        raise _damaged(folder, f"{TENSORS_FILE} is missing")
    data = path.read_bytes()
    if len(data) != header["tensors_bytes"]:
        raise _damaged(
            folder, f"{TENSORS_FILE} has {len(data)} bytes instead of {header['tensors_bytes']}"
        )
    if hashlib.sha256(data).hexdigest() != header["tensors_sha256"]:
        raise _damaged(folder, f"{TENSORS_FILE} was changed after it was written")
    return data


def _damaged(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {folder} is damaged: {what}; use another checkpoint")


# --- many checkpoints of one run -------------------------------------------------------------


class CheckpointManager:
    """Checkpoints ``step_<number>`` of one run: keeps the newest ones and the best one.

    Args:
        folder: holds the checkpoints; made by the first ``save``. One process writes to it.
        keep_last: newest checkpoints kept beside the best one, at least 1.
    """

    def __init__(self, folder: str | Path, *, keep_last: int = 2) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last={keep_last} would keep nothing to resume from: use 1")
        self.folder = Path(folder)
        self.keep_last = keep_last

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of ``step``."""
        return self.folder / f"step_{step:09d}"

    def save(self, step: int, tree: Tree, *, metric: float | None = None) -> Path:
        """Write the checkpoint of ``step``, then drop those that need not be kept.

        Args:
            step: iteration or environment steps; larger is newer.
            tree: nested state.
            metric: larger is better; the checkpoint with the largest one is kept as the best.

        Raises:
            CheckpointError: as ``save``; the checkpoints that were there are kept.
        """
        path = self.path(step)
        metric = None if metric is None or math.isnan(metric) else metric
        save(path, tree, info={"step": step, "metric": metric})
        self._prune()
        return path

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, complete or not, ascending."""
        names = (path.name.removeprefix("step_") for path in self.folder.glob("step_*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def latest(self) -> Path | None:
        """The newest checkpoint that is complete, or None."""
        return next((p for p in map(self.path, reversed(self.steps())) if _is_whole(p)), None)

    def best(self) -> Path | None:
        """The complete checkpoint with the largest metric (the newest of equals), or None."""
        return next((path for path in self._by_metric() if _is_whole(path)), None)

    def _by_metric(self) -> list[Path]:
        metrics = [(_metric(self.path(step)), step) for step in self.steps()]
        scored = sorted(((m, step) for m, step in metrics if m is not None), reverse=True)
        return [self.path(step) for _, step in scored]

    def _prune(self) -> None:
        kept = {self.path(step) for step in self.steps()[-self.keep_last :]}
        for path in {self.path(step) for step in self.steps()} - kept - {*self._by_metric()[:1]}:
            # Renamed first, so that a name never stands for half a checkpoint.
            retired = path.with_name(f".{path.name}.retired-{os.getpid()}")
            shutil.rmtree(retired, ignore_errors=True)
            path.rename(retired)
        # These, and what a killed run left behind.
        for pattern in (".*.retired-*", ".*.unfinished-*"):
            for leftover in self.folder.glob(pattern):
                shutil.rmtree(leftover, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    try:
        verify(folder)
    except CheckpointError:
        return False
    return True


def _metric(folder: Path) -> float | None:
    try:
        return read_info(folder).get("metric")
    except CheckpointError:
        return None


def locate(path: str | Path) -> Path:
    """The checkpoint meant by a path that a user typed.

    Args:
        path: a checkpoint folder; a run folder or its ``checkpoints`` folder (the newest complete
            one); or either followed by ``best`` or ``latest``.

    Raises:
        CheckpointError: none is found there.
    """
    path = Path(path)
    if (path / STATE_FILE).is_file():
        return path
    named = path.name in ("best", "latest")
    top = path.parent if named else path
    for folder in (top / "checkpoints", top):
        manager = CheckpointManager(folder)
        if not manager.steps():
            continue
        found = manager.best() if path.name == "best" else manager.latest()
        if found is None:
            raise CheckpointError(f"{folder} holds no complete checkpoint to take")
        return found
    if not top.exists():
        raise CheckpointError(f"there is no checkpoint at {path}")
    raise CheckpointError(f"{path} is neither a checkpoint nor a run folder with checkpoints")
