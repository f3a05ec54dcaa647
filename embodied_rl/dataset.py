r"""Episodes on disk in the layout of LeRobotDataset v3.0, and in memory as tensors.

Axes: ``F`` frames (decision steps of all episodes, one after the other), ``E`` episodes, ``D``
action dimension, ``H`` actions of a chunk.

    meta/info.json                            fps, features, totals, path templates
    meta/stats.json                           min, max, mean, std, count per feature
    meta/tasks.parquet                        task text of every task_index
    meta/episodes/chunk-000/file-000.parquet  one row per episode: where its frames are, its stats
    data/chunk-000/file-000.parquet           one row per frame, many episodes per file
    videos/KEY/chunk-000/file-000.mp4         one file per episode and camera

A frame holds ``observation.*``, the ``action`` taken there and its outcome: ``next.reward``,
``next.done``, ``next.success``. Images are stored as video, so not bit for bit; all else is.

Writing is safe against a crash at any point: every file is replaced whole (written beside, then
renamed), and an episode exists from the moment its row is in ``meta/episodes``, which is renamed
after its frames and before the totals that are derived from it. Both parquet files are rewritten
with every episode up to a size limit and then left alone, so there are few of them.

Format: https://huggingface.co/docs/lerobot/lerobot-dataset-v3. Neither lerobot nor pandas is
needed; pyarrow is imported on use, PyAV only where there are images.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied_rl.types import TensorDict

CODEBASE_VERSION = "v3.0"
FILES_PER_CHUNK = 1000
MAX_DATA_FILE_BYTES = 8 * 2**20
"""A data file is closed before it outgrows this; until then every episode rewrites it."""
EPISODES_PER_META_FILE = 1000

_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH = f"data/{_FILE}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{_FILE}.mp4"
EPISODES_PATH = f"meta/episodes/{_FILE}.parquet"
_PARTIAL = ".embodied-rl-partial"
_STATS = ("min", "max", "mean", "std", "count")
_FRAME_DTYPES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
    "next.reward": "float32",
    "next.done": "bool",
    "next.success": "bool",
}
Row = dict[str, Any]
"""One row of ``meta/episodes``."""
Stats = dict[str, dict[str, Tensor]]
"""By feature, then by statistic."""


class DatasetError(ValueError):
    """A dataset folder that cannot be read or written; the sentence says what to do."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Episodes in memory, frames of an episode next to each other.

    Attributes:
        obs: ``[F, ...]`` by name (``observation.state`` is ``"state"``); images uint8.
        actions: ``[F, D]``; discrete actions are ``[F, 1]`` int64.
        rewards: ``[F]`` float32 reward of the action; 0 where the folder has none.
        success: ``[F]`` bool, solved with this action; False where the folder has none.
        timestamps: ``[F]`` float32 seconds since the start of the episode.
        frame_index: ``[F]`` int64 position in the episode.
        episode_index: ``[F]`` int64 number of the episode in the folder.
        task_index: ``[F]`` int64 index into ``tasks``.
        tasks: instruction texts.
        fps: decision steps per second.
    """

    obs: TensorDict
    actions: Tensor
    rewards: Tensor
    success: Tensor
    timestamps: Tensor
    frame_index: Tensor
    episode_index: Tensor
    task_index: Tensor
    tasks: tuple[str, ...]
    fps: int

    @property
    def num_frames(self) -> int:
        """F."""
        return len(self.actions)

    @property
    def episodes(self) -> Tensor:
        """``[E]`` int64 numbers of the episodes, ascending."""
        return torch.unique(self.episode_index)


def load_dataset(path: str | Path) -> Dataset:
    """Read a folder in the LeRobotDataset v3.0 layout, whoever wrote it, into memory.

    Raises:
        DatasetError: not such a folder, another version, or files missing or damaged.
    """
    root = Path(path)
    info = _read_info(root)
    rows = _read_episode_rows(root)
    if not rows and not info["total_episodes"]:
        raise DatasetError(f"{root} holds no episodes yet; collect some into it")
    if len(rows) < info["total_episodes"]:
        raise DatasetError(
            f"{root} is incomplete: {len(rows)} of {info['total_episodes']} episodes are listed "
            "under meta/episodes; copy the folder again or collect episodes into it"
        )
    frames = _read_frames(root, info, rows)
    num_frames = len(frames["action"])
    return Dataset(
        obs=_read_obs(root, info, rows, frames=frames),
        actions=frames["action"],
        rewards=frames.get("next.reward", torch.zeros(num_frames, 1)).squeeze(1).float(),
        success=frames.get("next.success", torch.zeros(num_frames, 1)).squeeze(1).bool(),
        timestamps=frames["timestamp"].squeeze(1),
        frame_index=frames["frame_index"].squeeze(1),
        episode_index=frames["episode_index"].squeeze(1),
        task_index=frames["task_index"].squeeze(1),
        tasks=_read_tasks(root),
        fps=info["fps"],
    )


def select_episodes(dataset: Dataset, *, episodes: Tensor) -> Dataset:
    """The frames of ``episodes`` [E'] (numbers as in ``Dataset.episodes``); tasks stay the same."""
    rows = torch.isin(dataset.episode_index, episodes)
    return replace(
        dataset,
        obs={name: value[rows] for name, value in dataset.obs.items()},
        actions=dataset.actions[rows],
        rewards=dataset.rewards[rows],
        success=dataset.success[rows],
        timestamps=dataset.timestamps[rows],
        frame_index=dataset.frame_index[rows],
        episode_index=dataset.episode_index[rows],
        task_index=dataset.task_index[rows],
    )


def split_episodes(dataset: Dataset, *, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Training and held-out episodes; an episode is never divided.

    Args:
        dataset: of E episodes.
        fraction: share of episodes held out, rounded to at least one on either side unless 0.
        seed: of the random choice.

    Raises:
        DatasetError: there is nothing to hold out.
    """
    episodes = dataset.episodes
    if not 0.0 <= fraction < 1.0:
        raise DatasetError(f"fraction must lie in [0, 1), got {fraction}")
    if fraction > 0.0 and len(episodes) < 2:
        raise DatasetError("a single episode cannot be split; collect more or use fraction=0")
    num_held_out = 0
    if fraction > 0.0:
        num_held_out = min(max(1, round(fraction * len(episodes))), len(episodes) - 1)
    order = torch.randperm(len(episodes), generator=torch.Generator().manual_seed(seed))
    held_out = episodes[order[:num_held_out]]
    return (
        select_episodes(dataset, episodes=episodes[order[num_held_out:]]),
        select_episodes(dataset, episodes=held_out),
    )


def chunked_actions(dataset: Dataset, *, chunk_length: int) -> tuple[TensorDict, Tensor, Tensor]:
    """Imitation targets: the next H actions of every frame.

    Returns:
        ``obs``, as in the dataset ``[F, ...]``; ``actions [F, H, D]``, past the end of the episode
        the last one repeated; ``mask [F, H]`` bool, False for those repetitions.
    """
    if chunk_length < 1:
        raise DatasetError(f"chunk_length must be at least 1, got {chunk_length}")
    last = _last_frames(dataset.episode_index)
    steps = torch.arange(dataset.num_frames)[:, None] + torch.arange(chunk_length)
    mask = steps <= last[:, None]
    return dataset.obs, dataset.actions[torch.minimum(steps, last[:, None])], mask


def dataset_stats(dataset: Dataset) -> Stats:
    """Statistics for normalisation, by observation name and ``"action"``.

    Returns:
        ``mean``, ``std`` (population), ``min``, ``max`` of every dimension over all frames,
        ``[D]`` float32; for images ``[3]`` per channel with pixels in [0, 1].
    """
    stats = {name: _stats_of(value) for name, value in dataset.obs.items()}
    stats["action"] = _stats_of(dataset.actions)
    return {
        name: {key: entry[key].float() for key in ("mean", "std", "min", "max")}
        for name, entry in stats.items()
    }


class DatasetWriter:
    """Appends episodes to a folder; each one is complete on disk when ``add_episode`` returns.

    A new or empty folder is begun with the first episode, whose shapes and types become those of
    the dataset. A folder that this class wrote is continued after its last complete episode.

    Args:
        path: the folder.
        fps: decision steps per second.

    Raises:
        DatasetError: the folder holds something else, or a dataset of another fps.
    """

    def __init__(self, path: str | Path, *, fps: int) -> None:
        self.root = Path(path)
        self.fps = fps
        self._features: dict[str, Any] = {}
        self._rows: list[Row] = []
        self._tasks: list[str] = []
        self._stats: Stats = {}
        self._table: Any = None  # frames of the data file that is still growing
        if fps < 1:
            raise DatasetError(f"fps must be at least 1, got {fps}")
        for folder in ("meta", "data", "videos"):
            for partial in (self.root / folder).rglob(f"*{_PARTIAL}"):
                partial.unlink()
        if (self.root / "meta/info.json").exists():
            self._resume()
        elif self.root.exists() and any(not p.is_dir() for p in self.root.rglob("*")):
            raise DatasetError(
                f"{self.root} holds files but no meta/info.json of a dataset; name a new folder"
            )

    @property
    def num_episodes(self) -> int:
        """E, complete episodes."""
        return len(self._rows)

    @property
    def num_frames(self) -> int:
        """F, frames of the complete episodes."""
        return self._rows[-1]["dataset_to_index"] if self._rows else 0

    @property
    def seeds(self) -> list[int]:
        """Seed of every complete episode, -1 where none was given."""
        return [row["seed"] for row in self._rows]

    def add_episode(
        self,
        obs: TensorDict,
        *,
        actions: Tensor,
        rewards: Tensor,
        success: Tensor,
        task: str,
        seed: int = -1,
    ) -> None:
        """Write one episode of F frames.

        Args:
            obs: ``[F, D]`` vectors, or uint8 images ``[F, h, w, 3]`` or ``[F, 3, h, w]``.
            actions: ``[F, D]``, or ``[F]`` of discrete actions.
            rewards: ``[F]``.
            success: ``[F]`` bool.
            task: instruction text.
            seed: of the environment, kept with the episode (``seeds``) so that a collection that
                is resumed knows what it has.

        Raises:
            DatasetError: shapes or types differ from those of the dataset, a number is not finite,
                or the disk is full; the episodes before are intact.
        """
        values = _frame_values(obs, actions=actions, rewards=rewards, success=success)
        features = {key: _feature(key, value, fps=self.fps) for key, value in values.items()}
        if self._features and features != self._features:
            raise DatasetError(
                f"the episode does not fit the dataset {self.root}: "
                f"{_first_difference(self._features, features)}; collect into a new folder"
            )
        tasks = self._tasks if task in self._tasks else [*self._tasks, task]
        self._fill_in(values, task_index=tasks.index(task))
        try:
            self._save(values, features=features, tasks=tasks, task=task, seed=seed)
        except OSError as error:
            raise DatasetError(
                f"episode {self.num_episodes} could not be written to {self.root} "
                f"({error.strerror or error}); the {self.num_episodes} episodes before it are "
                "intact: make room and run again to continue"
            ) from error

    def _fill_in(self, values: TensorDict, *, task_index: int) -> None:
        """Set the index columns that depend on what was written before."""
        num_frames = len(values["action"])
        steps = torch.arange(num_frames)
        values["frame_index"] = steps
        values["timestamp"] = (steps.double() / self.fps).float()
        values["index"] = self.num_frames + steps
        values["episode_index"] = torch.full((num_frames,), self.num_episodes)
        values["task_index"] = torch.full((num_frames,), task_index)

    def _save(
        self,
        values: TensorDict,
        *,
        features: dict[str, Any],
        tasks: list[str],
        task: str,
        seed: int,
    ) -> None:
        """Write the files in the order that keeps the folder valid, then adopt the episode."""
        import pyarrow as pa

        if not self._features:
            self._write_totals(features, rows=[], tasks=[], stats={})
        stats = {key: _stats_of(value) for key, value in values.items()}
        table, data_index = _frames_table(values, features), 0
        if self._rows:
            data_index = _index_of(self._rows[-1], "data/")
            grown = pa.concat_tables([self._table, table])
            fits = grown.nbytes <= MAX_DATA_FILE_BYTES
            table, data_index = (grown, data_index) if fits else (table, data_index + 1)
        row = self._row(features, stats, task=task, seed=seed, data_index=data_index)
        for key in _video_keys(features):
            video = _encode_video(_channels_last(values[key]), fps=self.fps)
            name = VIDEO_PATH.format(video_key=key, **_place(self.num_episodes))
            _replace(self.root / name, video)
        _replace(self.root / DATA_PATH.format(**_place(data_index)), _parquet_bytes(table))
        _replace(self.root / "meta/tasks.parquet", _parquet_bytes(_tasks_table(tasks)))
        rows = [*self._rows, row]
        first = self.num_episodes - self.num_episodes % EPISODES_PER_META_FILE
        meta = _parquet_bytes(pa.Table.from_pylist(rows[first:]))
        _replace(self.root / EPISODES_PATH.format(**_place(first // EPISODES_PER_META_FILE)), meta)
        # From here on the episode counts, even if the totals are never written.
        self._features, self._rows, self._tasks, self._table = features, rows, tasks, table
        self._stats = {key: _merge_stats(self._stats.get(key), stats[key]) for key in stats}
        self._write_totals(features, rows=rows, tasks=tasks, stats=self._stats)

    def _row(
        self, features: Mapping[str, Any], stats: Stats, *, task: str, seed: int, data_index: int
    ) -> Row:
        length = int(stats["action"]["count"])
        row: Row = {
            "episode_index": self.num_episodes,
            "tasks": [task],
            "length": length,
            "seed": seed,
            "dataset_from_index": self.num_frames,
            "dataset_to_index": self.num_frames + length,
        }
        meta_index = self.num_episodes // EPISODES_PER_META_FILE
        row |= {f"data/{name}": value for name, value in _place(data_index).items()}
        row |= {f"meta/episodes/{name}": value for name, value in _place(meta_index).items()}
        for key in _video_keys(features):
            place = {**_place(self.num_episodes), "from_timestamp": 0.0}
            place["to_timestamp"] = length / self.fps
            row |= {f"videos/{key}/{name}": value for name, value in place.items()}
        for key, entry in _stats_as_lists(stats, features).items():
            row |= {f"stats/{key}/{name}": value for name, value in entry.items()}
        return row

    def _write_totals(
        self, features: dict[str, Any], *, rows: Sequence[Row], tasks: list[str], stats: Stats
    ) -> None:
        """Write ``stats.json`` and ``info.json``, which repeat what the other files say."""
        info = {
            "codebase_version": CODEBASE_VERSION,
            "robot_type": None,
            "total_episodes": len(rows),
            "total_frames": rows[-1]["dataset_to_index"] if rows else 0,
            "total_tasks": len(tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self.fps,
            "splits": {"train": f"0:{len(rows)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if _video_keys(features) else None,
            "features": features,
        }
        _replace(self.root / "meta/info.json", _json_bytes(info))
        _replace(self.root / "meta/stats.json", _json_bytes(_stats_as_lists(stats, features)))

    def _resume(self) -> None:
        """Continue after the last complete episode; drop what a crash left of the one after it."""
        info = _read_info(self.root)
        if info["fps"] != self.fps:
            raise DatasetError(
                f"{self.root} was collected at {info['fps']} steps per second, not {self.fps}; "
                "collect into a new folder"
            )
        self._rows = _read_episode_rows(self.root, with_stats=True)
        if not self._rows:
            return
        self._features = info["features"]
        self._tasks = list(_read_tasks(self.root))
        expected = {f"stats/{key}/{name}" for key in self._features for name in _STATS} | {"seed"}
        for row in self._rows:
            if not expected <= row.keys():
                raise DatasetError(
                    f"{self.root} was written by another program and cannot be continued here; "
                    "collect into a new folder"
                )
            self._adopt_stats(row)
        self._drop_leftovers()
        self._write_totals(self._features, rows=self._rows, tasks=self._tasks, stats=self._stats)

    def _adopt_stats(self, row: Row) -> None:
        for key in self._features:
            new = {
                name: torch.tensor(row[f"stats/{key}/{name}"], dtype=torch.float64).flatten()
                for name in _STATS
            }
            self._stats[key] = _merge_stats(self._stats.get(key), new)

    def _drop_leftovers(self) -> None:
        index = _index_of(self._rows[-1], "data/")
        path = self.root / DATA_PATH.format(**_place(index))
        table = _read_parquet(path)
        num_complete = sum(r["length"] for r in self._rows if _index_of(r, "data/") == index)
        self._table = table.slice(0, num_complete)
        if len(table) > num_complete:
            _replace(path, _parquet_bytes(self._table))
        (self.root / DATA_PATH.format(**_place(index + 1))).unlink(missing_ok=True)


# Frames and features


def _frame_values(
    obs: TensorDict, *, actions: Tensor, rewards: Tensor, success: Tensor
) -> TensorDict:
    """``[F, ...]`` by feature, index columns as placeholders.

    Raises:
        DatasetError: lengths differ, or a number is not finite.
    """
    num_frames = len(actions)
    values = {_feature_key(name, value): value.cpu() for name, value in obs.items()}
    values["action"] = actions.cpu().reshape(num_frames, -1)
    for key, dtype in _FRAME_DTYPES.items():
        values[key] = torch.zeros(num_frames, dtype=getattr(torch, dtype))
    values["next.reward"] = rewards.cpu().float()
    values["next.success"] = success.cpu().bool()
    values["next.done"][-1:] = True
    for key, value in values.items():
        if len(value) != num_frames or num_frames == 0:
            raise DatasetError(f"{key} has {len(value)} frames, action has {num_frames}")
        if value.is_floating_point() and not value.isfinite().all():
            raise DatasetError(f"{key} holds a NaN or infinite number; drop this episode")
    return values


def _feature_key(name: str, value: Tensor) -> str:
    if "/" in name:
        raise DatasetError(f"observation name {name!r} must not contain '/'")
    return f"observation.images.{name}" if value.ndim == 4 else f"observation.{name}"


def _obs_name(key: str) -> str:
    return key.removeprefix("observation.").removeprefix("images.")


def _feature(key: str, value: Tensor, *, fps: int) -> dict[str, Any]:
    """The entry of ``info.json`` for ``value`` [F, ...], in JSON types.

    Raises:
        DatasetError: neither a vector nor an RGB image.
    """
    shape = list(value.shape[1:]) or [1]
    if key.startswith("observation.images."):
        if value.dtype != torch.uint8 or 3 not in (shape[0], shape[2]):
            raise DatasetError(
                f"{key} must be uint8 images [h, w, 3] or [3, h, w], got {value.dtype} {shape}"
            )
        channels_last = shape[2] == 3
        height, width = shape[:2] if channels_last else shape[1:]
        names = ["height", "width", "channels"]
        return {
            "dtype": "video",
            "shape": shape,
            "names": names if channels_last else [names[2], *names[:2]],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": _pixel_format(height, width),
                "video.is_depth_map": False,
                "video.fps": fps,
                "video.channels": 3,
                "has_audio": False,
            },
        }
    if len(shape) != 1:
        raise DatasetError(f"{key} must be a vector [D] or an image per frame, got shape {shape}")
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": shape, "names": None}


def _first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    for key in [*old, *new]:
        if old.get(key) != new.get(key):
            texts = [
                f"{f['dtype']} {f['shape']}" if f else "absent"
                for f in (old.get(key), new.get(key))
            ]
            return f"{key} is {texts[0]} there and {texts[1]} here"
    raise AssertionError("the features are equal")


def _video_keys(features: Mapping[str, Any]) -> list[str]:
    return [key for key, feature in features.items() if feature["dtype"] == "video"]


def _channels_last(images: Tensor) -> Tensor:
    """``[F, h, w, 3]`` of images in either layout."""
    return images if images.shape[-1] == 3 else images.permute(0, 2, 3, 1)


def _last_frames(episode_index: Tensor) -> Tensor:
    """``[F]`` row of the last frame of each frame's episode."""
    _, lengths = torch.unique_consecutive(episode_index, return_counts=True)
    return torch.repeat_interleave(lengths.cumsum(0) - 1, lengths)


# Statistics


def _stats_of(values: Tensor) -> dict[str, Tensor]:
    """``min``, ``max``, ``mean``, ``std`` ``[D]`` and ``count`` ``[1]`` over frames, float64.

    Of images per channel over frames and pixels, scaled to [0, 1], from exact histograms.
    """
    count = torch.tensor([len(values)], dtype=torch.float64)
    if values.ndim == 4:
        images = _channels_last(values)
        levels = torch.arange(256, dtype=torch.float64) / 255.0
        counts = torch.stack(
            [torch.bincount(images[..., c].flatten(), minlength=256) for c in range(3)]
        ).double()
        share = counts / counts.sum(dim=1, keepdim=True)
        mean = share @ levels
        std = (share * (levels - mean[:, None]) ** 2).sum(dim=1).sqrt()
        seen = [levels[row > 0] for row in counts]
        low, high = torch.stack([s[0] for s in seen]), torch.stack([s[-1] for s in seen])
    else:
        flat = values.reshape(len(values), -1).double()
        mean, std = flat.mean(dim=0), flat.std(dim=0, correction=0)
        low, high = flat.amin(dim=0), flat.amax(dim=0)
    return {"min": low, "max": high, "mean": mean, "std": std, "count": count}


def _merge_stats(a: dict[str, Tensor] | None, b: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics of the union of two sets of frames (Chan et al. 1979, pairwise variance)."""
    if a is None:
        return b
    count = a["count"] + b["count"]
    weight_a, weight_b = a["count"] / count, b["count"] / count
    variance = (
        weight_a * a["std"] ** 2
        + weight_b * b["std"] ** 2
        + weight_a * weight_b * (a["mean"] - b["mean"]) ** 2
    )
    return {
        "min": torch.minimum(a["min"], b["min"]),
        "max": torch.maximum(a["max"], b["max"]),
        "mean": weight_a * a["mean"] + weight_b * b["mean"],
        "std": variance.sqrt(),
        "count": count,
    }


def _stats_as_lists(stats: Stats, features: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """JSON form; the statistics of images are [3, 1, 1], ``count`` is an integer."""
    lists: dict[str, dict[str, list[Any]]] = {}
    for key, entry in stats.items():
        is_video = features[key]["dtype"] == "video"
        lists[key] = {
            name: (value[:, None, None] if is_video else value).tolist()
            for name, value in entry.items()
        }
        lists[key]["count"] = [int(entry["count"])]
    return lists


# Files


def _place(index: int) -> dict[str, int]:
    """Chunk folder and file number of the ``index``-th file of a kind."""
    chunk_index, file_index = divmod(index, FILES_PER_CHUNK)
    return {"chunk_index": chunk_index, "file_index": file_index}


def _index_of(row: Row, prefix: str) -> int:
    return row[f"{prefix}chunk_index"] * FILES_PER_CHUNK + row[f"{prefix}file_index"]


def _replace(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that the file is at all times the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + _PARTIAL)
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, indent=4, ensure_ascii=False).encode()


def _parquet_bytes(table: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="snappy")
    return sink.getvalue().to_pybytes()


def _frames_table(values: TensorDict, features: Mapping[str, Any]) -> Any:
    """One row per frame; vectors as fixed-size lists, vectors of one number as that number."""
    import pyarrow as pa

    columns = {}
    for key, feature in features.items():
        if feature["dtype"] == "video":
            continue
        flat = pa.array(values[key].contiguous().flatten().numpy())
        size = feature["shape"][0]
        columns[key] = flat if size == 1 else pa.FixedSizeListArray.from_arrays(flat, size)
    return pa.table(columns)


def _tasks_table(tasks: list[str]) -> Any:
    """Task texts as pandas writes a frame with column ``task_index`` and the texts as index."""
    import pyarrow as pa

    def column(name: str, pandas_type: str, numpy_type: str) -> dict[str, Any]:
        types = {"pandas_type": pandas_type, "numpy_type": numpy_type, "metadata": None}
        return {"name": name, "field_name": name, **types}

    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [column("task_index", "int64", "int64"), column("task", "unicode", "object")],
    }
    indices = pa.array(range(len(tasks)), pa.int64())
    table = pa.table({"task_index": indices, "task": pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _read_info(root: Path) -> dict[str, Any]:
    path = root / "meta/info.json"
    if not path.exists():
        raise DatasetError(
            f"{root} is not a LeRobotDataset folder: it has no meta/info.json; name a folder that "
            "was collected, or collect episodes first"
        )
    try:
        info = json.loads(path.read_text())
    except ValueError as error:
        raise DatasetError(f"{path} is damaged ({error}); copy the folder again") from error
    needed = {"codebase_version", "fps", "features", "total_episodes", "data_path", "video_path"}
    if not isinstance(info, dict) or not needed <= info.keys():
        raise DatasetError(f"{path} is not that of a LeRobotDataset; name another folder")
    if info["codebase_version"] != CODEBASE_VERSION:
        raise DatasetError(
            f"{root} is a LeRobotDataset {info['codebase_version']}; convert it to "
            f"{CODEBASE_VERSION} with lerobot"
        )
    return info


def _read_parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path).read()
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing; copy the dataset folder again") from error
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            f"{path} is cut off or not a parquet file; copy the dataset folder again"
        ) from error


def _read_episode_rows(root: Path, *, with_stats: bool = False) -> list[Row]:
    """Rows of ``meta/episodes`` by ascending episode number."""
    rows: list[Row] = []
    for path in sorted((root / "meta/episodes").glob("*/*.parquet")):
        table = _read_parquet(path)
        names = [name for name in table.column_names if with_stats or name[:6] != "stats/"]
        rows.extend(table.select(names).to_pylist())
    return sorted(rows, key=lambda row: row["episode_index"])


def _read_tasks(root: Path) -> tuple[str, ...]:
    table = _read_parquet(root / "meta/tasks.parquet")
    texts = next(name for name in table.column_names if name != "task_index")
    by_index = sorted(zip(table["task_index"].to_pylist(), table[texts].to_pylist(), strict=True))
    return tuple(text for _, text in by_index)


def _read_frames(root: Path, info: Mapping[str, Any], rows: Sequence[Row]) -> TensorDict:
    """``[F, ...]`` of every numeric feature, frames in the order of ``rows``."""
    features = {
        key: feature
        for key, feature in info["features"].items()
        if feature["dtype"] not in ("video", "image", "string")
    }
    for key in ("action", "timestamp", "frame_index", "episode_index", "task_index"):
        if key not in features:
            raise DatasetError(f"{root} has no feature {key!r}, which imitation needs")
    parts: dict[str, list[np.ndarray]] = {key: [] for key in features}
    for place, members in _by_file(rows, "data/").items():
        path = root / info["data_path"].format(chunk_index=place[0], file_index=place[1])
        table = _read_parquet(path)
        missing = sorted(features.keys() - set(table.column_names))
        if missing:
            raise DatasetError(f"{path} has no column {missing[0]}; copy the dataset folder again")
        numbers = [rows[i]["episode_index"] for i in members]
        kept = np.isin(table["episode_index"].to_numpy(), numbers)
        for key, feature in features.items():
            parts[key].append(_to_numpy(table[key], feature["shape"])[kept])
    frames = {key: torch.from_numpy(np.concatenate(arrays)) for key, arrays in parts.items()}
    lengths = torch.tensor([row["length"] for row in rows])
    numbers = torch.tensor([row["episode_index"] for row in rows])
    if not torch.equal(frames["episode_index"].flatten(), numbers.repeat_interleave(lengths)):
        raise DatasetError(
            f"{root} is incomplete: the files under data/ do not hold the frames that "
            "meta/episodes lists; copy the folder again"
        )
    return frames


def _read_obs(
    root: Path, info: Mapping[str, Any], rows: Sequence[Row], *, frames: TensorDict
) -> TensorDict:
    """Observations by name, from the frames and the videos."""
    obs: TensorDict = {}
    for key, feature in info["features"].items():
        if not key.startswith("observation."):
            continue
        if feature["dtype"] == "image":
            raise DatasetError(
                f"{key} is stored as single pictures, which are not read here; record it as video"
            )
        if feature["dtype"] == "video":
            obs[_obs_name(key)] = _read_video(root, info, rows, key=key)
        elif key in frames:
            obs[_obs_name(key)] = frames[key]
    return obs


def _by_file(rows: Sequence[Row], prefix: str) -> dict[tuple[int, int], list[int]]:
    """Positions in ``rows`` by (chunk, file) of what ``prefix`` names."""
    files: dict[tuple[int, int], list[int]] = {}
    for position, row in enumerate(rows):
        place = (row[f"{prefix}chunk_index"], row[f"{prefix}file_index"])
        files.setdefault(place, []).append(position)
    return files


def _to_numpy(column: Any, shape: Sequence[int]) -> np.ndarray:
    """``[rows, *shape]`` of a column of numbers or of (nested) lists."""
    import pyarrow as pa

    array = column.combine_chunks()
    while pa.types.is_nested(array.type):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False).reshape(len(column), *shape)


# Video


def _read_video(root: Path, info: Mapping[str, Any], rows: Sequence[Row], *, key: str) -> Tensor:
    """uint8 images of all frames in the layout that ``info`` names."""
    shape = info["features"][key]["shape"]
    channels_last = shape[-1] == 3
    height, width = shape[:2] if channels_last else shape[1:]
    ends = np.cumsum([row["length"] for row in rows])
    frames = np.empty((ends[-1], height, width, 3), dtype=np.uint8)
    for place, members in _by_file(rows, f"videos/{key}/").items():
        name = info["video_path"].format(video_key=key, chunk_index=place[0], file_index=place[1])
        # One file may hold several episodes; each says at what time it begins there.
        target: dict[int, int] = {}
        for i in members:
            length = rows[i]["length"]
            first = round(rows[i][f"videos/{key}/from_timestamp"] * info["fps"])
            target |= {first + k: int(ends[i]) - length + k for k in range(length)}
        for number, image in enumerate(_decode_video(root / name)):
            if number in target:
                frames[target.pop(number)] = image
        if target:
            raise DatasetError(f"{root / name} ends too early; copy the dataset folder again")
    images = torch.from_numpy(frames)
    return images if channels_last else images.permute(0, 3, 1, 2).contiguous()


def _decode_video(path: Path) -> Iterator[np.ndarray]:
    """``[h, w, 3]`` uint8 images in order of time."""
    av = _import_av()
    if not path.exists():
        raise DatasetError(f"{path} is missing; copy the dataset folder again")
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except av.FFmpegError as error:
        raise DatasetError(
            f"{path} is cut off or not a video; copy the dataset folder again"
        ) from error


def _encode_video(images: Tensor, *, fps: int) -> bytes:
    """An mp4 (H.264, constant quality, a key frame every other frame) of ``[F, h, w, 3]`` uint8."""
    av = _import_av()
    height, width = images.shape[1:3]
    sink = io.BytesIO()
    with av.open(sink, mode="w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=fps, options={"crf": "18", "preset": "veryfast", "g": "2"}
        )
        stream.height, stream.width = height, width
        stream.pix_fmt = _pixel_format(height, width)
        for image in images.contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return sink.getvalue()


def _pixel_format(height: int, width: int) -> str:
    """Halved chroma resolution where the size allows it."""
    return "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise DatasetError("images need PyAV: run `pip install av`") from error
    return av
