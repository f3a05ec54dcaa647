"""The LeRobotDataset v3.0 folder: written, interrupted, damaged, read back."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from embodied_rl import dataset as module
from embodied_rl.dataset import (
    Dataset,
    DatasetError,
    DatasetWriter,
    chunked_actions,
    dataset_stats,
    load_dataset,
    split_episodes,
)

Episode = dict[str, Any]


def episode(seed: int, *, length: int = 5, images: bool = False) -> Episode:
    g = torch.Generator().manual_seed(seed)
    obs = {
        "state": torch.randn(length, 3, generator=g),
        "phase": torch.randn(length, 1, generator=g, dtype=torch.float64),
        "flags": torch.randint(0, 2, (length, 2), generator=g).bool(),
    }
    if images:
        obs["front"] = clip(seed, length=length)
        obs["wrist"] = clip(seed + 50, length=length)[:, :15, :17].permute(0, 3, 1, 2).contiguous()
    return {
        "obs": obs,
        "actions": torch.randn(length, 2, generator=g),
        "rewards": torch.randn(length, generator=g),
        "success": torch.arange(length) == length - 1,
        "task": f"task {seed % 2}",
        "seed": seed,
    }


def clip(seed: int, *, length: int) -> Tensor:
    """``[length, 32, 40, 3]``: a smooth gradient whose brightness tells seed and frame."""
    t = torch.arange(length)[:, None, None, None]
    y, x = torch.arange(32)[:, None, None], torch.arange(40)[:, None]
    levels = 20 + 6 * t + y + x + 10 * (seed % 7) + torch.tensor([0, 10, 20])
    return levels.to(torch.uint8)


def add(writer: DatasetWriter, item: Episode) -> None:
    writer.add_episode(item["obs"], **{key: item[key] for key in item if key != "obs"})


def collect(path: Path, items: list[Episode]) -> None:
    writer = DatasetWriter(path, fps=20)
    for item in items:
        add(writer, item)


def assert_holds(dataset: Dataset, items: list[Episode]) -> None:
    """Bit for bit, in order."""
    assert dataset.episodes.tolist() == list(range(len(items)))
    for name in ("state", "phase", "flags"):
        expected = torch.cat([item["obs"][name] for item in items])
        assert dataset.obs[name].dtype == expected.dtype
        assert torch.equal(dataset.obs[name], expected)
    assert torch.equal(dataset.actions, torch.cat([item["actions"] for item in items]))
    assert torch.equal(dataset.rewards, torch.cat([item["rewards"] for item in items]))
    assert torch.equal(dataset.success, torch.cat([item["success"] for item in items]))
    texts = [dataset.tasks[i] for i in dataset.task_index.tolist()]
    assert texts == [item["task"] for item in items for _ in item["actions"]]
    steps = [k for item in items for k in range(len(item["actions"]))]
    assert dataset.frame_index.tolist() == steps
    assert dataset.timestamps.tolist() == pytest.approx([k / 20 for k in steps])


ITEMS = [episode(seed, length=4 + seed) for seed in range(4)]


def test_round_trip_is_bitwise(tmp_path: Path) -> None:
    collect(tmp_path / "d", ITEMS)
    assert_holds(load_dataset(tmp_path / "d"), ITEMS)


def test_layout_is_that_of_lerobot(tmp_path: Path) -> None:
    collect(tmp_path, [episode(seed, images=True) for seed in range(3)])
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == [
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        *(f"videos/observation.images.front/chunk-000/file-00{i}.mp4" for i in range(3)),
        *(f"videos/observation.images.wrist/chunk-000/file-00{i}.mp4" for i in range(3)),
    ]
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 20
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 15, 2)
    assert info["splits"] == {"train": "0:3"} and info["chunks_size"] == 1000
    assert info["features"]["action"] == {"dtype": "float32", "shape": [2], "names": None}
    assert info["features"]["observation.images.front"]["shape"] == [32, 40, 3]
    frames = pq.read_table(tmp_path / files[0])
    stored = {k for k, f in info["features"].items() if f["dtype"] != "video"}
    assert set(frames.column_names) == stored
    assert frames.schema.field("action").type == pa.list_(pa.float32(), 2)
    assert frames.schema.field("observation.phase").type == pa.float64()
    assert frames["index"].to_pylist() == list(range(15))
    assert frames["next.done"].to_pylist() == [False, False, False, False, True] * 3
    rows = pq.read_table(tmp_path / files[1]).to_pylist()
    assert [(r["dataset_from_index"], r["dataset_to_index"]) for r in rows] == [
        (0, 5),
        (5, 10),
        (10, 15),
    ]
    assert rows[1]["tasks"] == ["task 1"] and rows[1]["length"] == 5
    assert rows[1]["videos/observation.images.front/file_index"] == 1
    assert rows[1]["videos/observation.images.front/to_timestamp"] == pytest.approx(0.25)
    stats = json.loads((tmp_path / "meta/stats.json").read_text())
    assert stats["action"]["count"] == [15]
    assert torch.tensor(stats["observation.images.wrist"]["mean"]).shape == (3, 1, 1)


def test_tasks_table_says_that_the_texts_are_its_index(tmp_path: Path) -> None:
    collect(tmp_path, ITEMS[:2])
    table = pq.read_table(tmp_path / "meta/tasks.parquet")
    assert table["task_index"].to_pylist() == [0, 1]
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    assert table["task"].to_pylist() == ["task 0", "task 1"]


def test_video_round_trip_is_close_and_frames_are_in_place(tmp_path: Path) -> None:
    items = [episode(seed, length=6 + seed, images=True) for seed in range(3)]
    collect(tmp_path, items)
    dataset = load_dataset(tmp_path)
    for name, shape in (("front", (32, 40, 3)), ("wrist", (3, 15, 17))):
        expected = torch.cat([item["obs"][name] for item in items]).float()
        got = dataset.obs[name].float()
        assert dataset.obs[name].dtype == torch.uint8 and got.shape == (21, *shape)
        # Consecutive frames differ by 6 levels: a frame out of place would show.
        assert (got - expected).abs().mean(dim=(1, 2, 3)).max() < 3.0


def test_one_video_of_several_episodes_is_read_by_its_timestamps(tmp_path: Path) -> None:
    items = [episode(seed, length=6, images=True) for seed in range(2)]
    collect(tmp_path, items)
    joined = torch.cat([item["obs"]["front"] for item in items])
    folder = tmp_path / "videos/observation.images.front/chunk-000"
    (folder / "file-000.mp4").write_bytes(module._encode_video(joined, fps=20))
    (folder / "file-001.mp4").unlink()
    path = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1]["videos/observation.images.front/file_index"] = 0
    rows[1]["videos/observation.images.front/from_timestamp"] = 0.3
    rows[1]["videos/observation.images.front/to_timestamp"] = 0.6
    pq.write_table(pa.Table.from_pylist(rows), path)
    got = load_dataset(tmp_path).obs["front"].float()
    assert (got - joined.float()).abs().mean(dim=(1, 2, 3)).max() < 3.0


def test_writer_continues_where_it_was_left(tmp_path: Path) -> None:
    for count, item in enumerate(ITEMS):
        writer = DatasetWriter(tmp_path, fps=20)
        assert writer.num_episodes == count
        assert writer.num_frames == sum(len(i["actions"]) for i in ITEMS[:count])
        assert writer.seeds == [i["seed"] for i in ITEMS[:count]]
        add(writer, item)
    collect(tmp_path / "at_once", ITEMS)
    assert_holds(load_dataset(tmp_path), ITEMS)
    for name in ("meta/info.json", "meta/stats.json"):
        assert (tmp_path / name).read_text() == (tmp_path / "at_once" / name).read_text()
    assert len(list((tmp_path / "data").rglob("*.parquet"))) == 1


class Crash(BaseException):
    """As a kill would, this passes every ``except Exception``."""


def crash_at(
    monkeypatch: pytest.MonkeyPatch, call: int, *, where: str, error: type[Crash] | OSError
) -> None:
    real, calls = getattr(os, where), iter(range(10_000))

    def failing(*args: Any) -> Any:
        if next(calls) == call:
            raise error
        return real(*args)

    monkeypatch.setattr(module.os, where, failing)


@pytest.mark.parametrize("where", ["fsync", "replace"])
@pytest.mark.parametrize("num_before", [0, 2])
def test_a_crash_at_any_write_loses_at_most_the_running_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, num_before: int
) -> None:
    items = [episode(seed, images=seed == 0 and num_before == 0) for seed in range(num_before)]
    items += [episode(10), episode(11)]
    survived, finished = set(), False
    for call in range(20):
        root = tmp_path / str(call)
        collect(root, items[:num_before])
        writer = DatasetWriter(root, fps=20)
        with monkeypatch.context() as patch:
            crash_at(patch, call, where=where, error=Crash)
            try:
                add(writer, items[num_before])
                finished = True
            except Crash:
                pass
        if num_before:
            assert len(load_dataset(root).episodes) in (num_before, num_before + 1)
        again = DatasetWriter(root, fps=20)
        survived.add(again.num_episodes)
        for item in items[again.num_episodes :]:
            add(again, item)
        assert_holds(load_dataset(root), items)
        info = json.loads((root / "meta/info.json").read_text())
        assert info["total_episodes"] == len(items)
        assert not [p for p in root.rglob("*") if "partial" in p.name]
        if finished:
            break
    assert finished and survived == {num_before, num_before + 1}


def test_leftover_frames_of_a_crash_are_dropped_on_reopening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(tmp_path, ITEMS[:2])
    writer = DatasetWriter(tmp_path, fps=20)
    with monkeypatch.context() as patch:
        crash_at(patch, 1, where="replace", error=Crash)  # the data file was replaced already
        with pytest.raises(Crash):
            add(writer, ITEMS[2])
    data = tmp_path / "data/chunk-000/file-000.parquet"
    assert len(pq.read_table(data)) == 4 + 5 + 6
    assert_holds(load_dataset(tmp_path), ITEMS[:2])
    DatasetWriter(tmp_path, fps=20)
    assert len(pq.read_table(data)) == 4 + 5


def test_partial_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    collect(tmp_path, ITEMS[:1])
    partial = tmp_path / "data/chunk-000" / f"file-000.parquet{module._PARTIAL}"
    partial.write_bytes(b"half")
    assert_holds(load_dataset(tmp_path), ITEMS[:1])
    DatasetWriter(tmp_path, fps=20)
    assert not partial.exists()


@pytest.mark.parametrize("call", range(6))
def test_full_disk_is_one_sentence_and_writing_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    collect(tmp_path, ITEMS[:2])
    writer = DatasetWriter(tmp_path, fps=20)
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        crash_at(patch, call, where="fsync", error=full)
        if call < 5:
            with pytest.raises(
                DatasetError, match=r"No space left.*before it are intact"
            ) as caught:
                add(writer, ITEMS[2])
            assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob(f"*{module._PARTIAL}"))
    loaded = load_dataset(tmp_path)
    assert_holds(loaded, ITEMS[: len(loaded.episodes)])
    for item in ITEMS[writer.num_episodes :]:
        add(writer, item)
    assert_holds(load_dataset(tmp_path), ITEMS)


def test_files_are_few_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = episode(0, length=50)
    collect(tmp_path / "one", [one])
    frame_bytes = pq.read_table(tmp_path / "one/data/chunk-000/file-000.parquet").nbytes
    monkeypatch.setattr(module, "MAX_DATA_FILE_BYTES", int(3.5 * frame_bytes))
    monkeypatch.setattr(module, "EPISODES_PER_META_FILE", 4)
    monkeypatch.setattr(module, "FILES_PER_CHUNK", 2)
    items = [episode(seed, length=50) for seed in range(10)]
    for half in (items[:5], items[5:]):
        collect(tmp_path / "many", half)
    assert_holds(load_dataset(tmp_path / "many"), items)

    def lengths(kind: str) -> dict[str, int]:
        paths = sorted((tmp_path / "many" / kind).rglob("*.parquet"))
        return {f"{p.parent.name}/{p.stem}": len(pq.read_table(p)) for p in paths}

    assert lengths("data") == {
        "chunk-000/file-000": 150,
        "chunk-000/file-001": 150,
        "chunk-001/file-000": 150,
        "chunk-001/file-001": 50,
    }
    assert lengths("meta/episodes") == {
        "chunk-000/file-000": 4,
        "chunk-000/file-001": 4,
        "chunk-001/file-000": 2,
    }


def break_info(root: Path, **changes: Any) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.front/chunk-000/file-000.mp4"
DAMAGES = {
    "gone": (lambda root: shutil.rmtree(root), "is not a LeRobotDataset folder"),
    "foreign": (lambda root: shutil.rmtree(root / "meta"), "is not a LeRobotDataset folder"),
    "cut info": (lambda root: cut(root / "meta/info.json"), "info.json is damaged"),
    "other json": (lambda root: (root / "meta/info.json").write_text("[1]"), "is not that of a"),
    "old version": (lambda root: break_info(root, codebase_version="v2.1"), "LeRobotDataset v2.1"),
    "cut data": (lambda root: cut(root / DATA), "file-000.parquet is cut off"),
    "no data": (lambda root: (root / DATA).unlink(), "file-000.parquet is missing"),
    "cut tasks": (lambda root: cut(root / "meta/tasks.parquet"), "tasks.parquet is cut off"),
    "no episodes": (lambda root: (root / EPISODES).unlink(), "is incomplete: 0 of 1 episodes"),
    "only begun": (
        lambda root: (break_info(root, total_episodes=0), (root / EPISODES).unlink()),
        "holds no episodes yet",
    ),
    "fewer episodes": (lambda root: break_info(root, total_episodes=3), "incomplete: 1 of 3"),
    "fewer frames": (
        lambda root: pq.write_table(pq.read_table(root / DATA).slice(0, 3), root / DATA),
        "is incomplete: the files under data/",
    ),
    "fewer columns": (
        lambda root: pq.write_table(pq.read_table(root / DATA).drop(["action"]), root / DATA),
        "has no column action",
    ),
    "no actions": (lambda root: break_info(root, features={}), "has no feature 'action'"),
    "cut video": (lambda root: cut(root / VIDEO), "file-000.mp4 is cut off"),
    "no video": (lambda root: (root / VIDEO).unlink(), "file-000.mp4 is missing"),
    "short video": (
        lambda root: (root / VIDEO).write_bytes(module._encode_video(clip(0, length=2), fps=20)),
        "file-000.mp4 ends too early",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_or_damaged_folder_is_one_sentence(tmp_path: Path, damage: str) -> None:
    collect(tmp_path / "d", [episode(0, images=True)])
    do, sentence = DAMAGES[damage]
    do(tmp_path / "d")
    with pytest.raises(DatasetError, match=re.escape(sentence)) as caught:
        load_dataset(tmp_path / "d")
    assert "\n" not in str(caught.value)


def test_writer_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="name a new folder"):
        DatasetWriter(tmp_path, fps=20)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_writer_refuses_a_dataset_of_another_program_or_rate(tmp_path: Path) -> None:
    collect(tmp_path, ITEMS[:1])
    with pytest.raises(DatasetError, match="at 20 steps per second, not 10"):
        DatasetWriter(tmp_path, fps=10)
    table = pq.read_table(tmp_path / EPISODES)
    pq.write_table(table.drop(["seed"]), tmp_path / EPISODES)
    with pytest.raises(DatasetError, match="was written by another program"):
        DatasetWriter(tmp_path, fps=20)
    assert_holds(load_dataset(tmp_path), ITEMS[:1])


def changed(**changes: Any) -> Episode:
    item = {**ITEMS[1], "obs": dict(ITEMS[1]["obs"])}
    for key, value in changes.items():
        (item["obs"] if key in item["obs"] or key == "extra" else item)[key] = value
    return item


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        (
            changed(state=torch.zeros(5, 4)),
            "state is float32 [3] there and float32 [4]",
        ),
        (changed(actions=torch.zeros(5, 2).double()), "action is float32 [2] there and float64"),
        (changed(extra=torch.zeros(5, 1)), "observation.extra is absent there"),
        (changed(extra=torch.zeros(5, 2, 2)), "must be a vector [D] or an image"),
        (changed(extra=torch.zeros(5, 4, 8, 8).byte()), "must be uint8 images"),
        (changed(rewards=torch.zeros(4)), "next.reward has 4 frames, action has 5"),
        (changed(state=torch.full((5, 3), torch.nan)), "holds a NaN"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path: Path, item: Episode, sentence: str
) -> None:
    collect(tmp_path, ITEMS[:1])
    with pytest.raises(DatasetError, match=re.escape(sentence)):
        add(DatasetWriter(tmp_path, fps=20), item)
    assert_holds(load_dataset(tmp_path), ITEMS[:1])


def test_discrete_actions_keep_their_type(tmp_path: Path) -> None:
    item = {**ITEMS[0], "actions": torch.arange(4)}
    collect(tmp_path, [item])
    assert torch.equal(load_dataset(tmp_path).actions, torch.arange(4)[:, None])


def loaded(tmp_path: Path, num_episodes: int = 10) -> Dataset:
    collect(tmp_path, [episode(seed, length=2 + seed % 3) for seed in range(num_episodes)])
    return load_dataset(tmp_path)


@pytest.mark.parametrize(("fraction", "held_out"), [(0.0, 0), (0.01, 1), (0.3, 3), (0.99, 9)])
def test_split_keeps_episodes_whole_and_apart(
    tmp_path: Path, fraction: float, held_out: int
) -> None:
    dataset = loaded(tmp_path)
    train, test = split_episodes(dataset, fraction=fraction, seed=3)
    assert len(test.episodes) == held_out
    assert not set(train.episodes.tolist()) & set(test.episodes.tolist())
    rows = torch.cat([train.obs["state"], test.obs["state"]])
    assert torch.equal(rows.sort(dim=0).values, dataset.obs["state"].sort(dim=0).values)
    for part in (train, test):
        for number in part.episodes.tolist():
            whole = dataset.actions[dataset.episode_index == number]
            assert torch.equal(part.actions[part.episode_index == number], whole)


def test_split_depends_on_the_seed_alone(tmp_path: Path) -> None:
    dataset = loaded(tmp_path)
    chosen = {
        seed: tuple(split_episodes(dataset, fraction=0.5, seed=seed)[1].episodes.tolist())
        for seed in (0, 1, 2, 0)
    }
    assert len(set(chosen.values())) == 3
    again = split_episodes(dataset, fraction=0.5, seed=0)[1]
    assert tuple(again.episodes.tolist()) == chosen[0]


def test_split_of_a_single_episode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be split"):
        split_episodes(loaded(tmp_path, 1), fraction=0.5, seed=0)


@pytest.mark.parametrize("chunk_length", [1, 3, 20])
def test_chunks_stop_at_the_end_of_their_episode(tmp_path: Path, chunk_length: int) -> None:
    dataset = split_episodes(loaded(tmp_path), fraction=0.4, seed=0)[0]
    obs, actions, mask = chunked_actions(dataset, chunk_length=chunk_length)
    assert torch.equal(obs["state"], dataset.obs["state"])
    assert actions.shape == (dataset.num_frames, chunk_length, 2)
    row = 0
    for number in dataset.episodes.tolist():
        episode_actions = dataset.actions[dataset.episode_index == number].tolist()
        for start in range(len(episode_actions)):
            remaining = episode_actions[start : start + chunk_length]
            padding = chunk_length - len(remaining)
            assert mask[row].tolist() == [True] * len(remaining) + [False] * padding
            assert actions[row].tolist() == remaining + [episode_actions[-1]] * padding
            row += 1
    assert row == dataset.num_frames


def test_stats_are_those_of_all_frames(tmp_path: Path) -> None:
    items = [episode(seed, length=3 + 4 * seed, images=True) for seed in range(3)]
    collect(tmp_path, items)
    states = torch.cat([item["obs"]["state"] for item in items]).numpy()
    stats = dataset_stats(load_dataset(tmp_path))
    stored = json.loads((tmp_path / "meta/stats.json").read_text())
    for name in ("mean", "std", "min", "max"):
        expected = pytest.approx(getattr(states, name)(axis=0), rel=1e-5)
        assert stats["state"][name].tolist() == expected
        assert stored["observation.state"][name] == expected
    wrist = torch.cat([item["obs"]["wrist"] for item in items]).numpy() / 255.0
    for name in ("mean", "std", "min", "max"):
        channels = torch.tensor(stored["observation.images.wrist"][name]).flatten().tolist()
        assert channels == pytest.approx(getattr(wrist, name)(axis=(0, 2, 3)), rel=1e-5)
        assert stats["wrist"][name].tolist() == pytest.approx(channels, abs=0.03)
