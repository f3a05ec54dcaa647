"""A tree comes back exactly, and no accident while writing or on the disk gives a wrong one."""

from __future__ import annotations

import errno
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embodied_rl import checkpoint
from embodied_rl.checkpoint import CheckpointError, CheckpointManager, load, locate, save

TREE: dict[str, Any] = {
    "policy": {"layer.0.weight": torch.randn(3, 4), "half": torch.ones(2).bfloat16()},
    "scalars": [None, True, False, 0, -7, 2**80, 0.1, 1e-320, -0.0, "naïve \n text"],
    "odd floats": [math.nan, math.inf, -math.inf],
    "tuples": (1, (2.5, "x"), [()]),
    "keys": {0: "int", "0": "text", -3: {"$": "dollar"}, "a/b": {}},
    "tensors": [
        torch.tensor(3),
        torch.zeros(0, 5),
        torch.arange(6).view(2, 3).T,
        torch.tensor([True, False]),
        torch.tensor([1, 255], dtype=torch.uint8),
        torch.tensor([math.nan, 1e300], dtype=torch.float64),
    ],
    "arrays": [np.arange(4, dtype=np.int16), np.float32(2.5), np.array(1.5), np.bool_(True)],
}


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        nan = left.isnan() & right.isnan()
        assert bool((nan | (left == right)).all())
    elif isinstance(left, np.ndarray | np.generic):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    elif isinstance(left, float):
        assert repr(left) == repr(right)
    else:
        assert left == right


def flip_bit(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def files_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# --- round trip ------------------------------------------------------------------------------


def test_tree_comes_back_with_types_dtypes_shapes_and_key_order(tmp_path: Path) -> None:
    save(tmp_path / "c", TREE)
    assert_same(load(tmp_path / "c"), TREE)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_optimiser_continues_as_if_never_stopped(kind: Callable[..., Any], tmp_path: Path) -> None:
    def make() -> tuple[torch.nn.Linear, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        optimizer = kind(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return model, optimizer, schedule

    def train(parts: tuple[torch.nn.Linear, torch.optim.Optimizer, Any], steps: range) -> None:
        model, optimizer, schedule = parts
        for step in steps:
            inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
            schedule.step()

    straight, stopped, resumed = make(), make(), make()
    train(straight, range(10))
    train(stopped, range(5))
    save(tmp_path / "c", [part.state_dict() for part in stopped])
    state = load(tmp_path / "c")
    assert_same(state[1], stopped[1].state_dict())
    for part, part_state in zip(resumed, state, strict=True):
        part.load_state_dict(part_state)
    train(resumed, range(5, 10))
    for a, b in zip(straight[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_random_generators_go_on_where_they_stood(tmp_path: Path) -> None:
    ours, theirs = torch.Generator().manual_seed(3), np.random.default_rng(3)
    torch.rand(5, generator=ours)
    save(tmp_path / "c", {"torch": ours.get_state(), "numpy": theirs.bit_generator.state})
    expected = torch.rand(5, generator=ours), theirs.random(5)
    state = load(tmp_path / "c")
    ours.set_state(state["torch"])
    theirs.bit_generator.state = state["numpy"]
    assert torch.equal(torch.rand(5, generator=ours), expected[0])
    assert (theirs.random(5) == expected[1]).all()


def test_tensors_that_share_memory_come_back_apart(tmp_path: Path) -> None:
    base = torch.arange(4.0)
    save(tmp_path / "c", {"whole": base, "view": base[1:3], "same": base})
    state = load(tmp_path / "c")
    state["whole"].zero_()
    assert state["view"].tolist() == [1, 2]
    assert state["same"].tolist() == [0, 1, 2, 3]


def test_info_is_read_without_tensors(tmp_path: Path) -> None:
    save(tmp_path / "c", {"w": torch.ones(3)}, info={"step": 4, "metric": 0.5})
    (tmp_path / "c" / "tensors.safetensors").unlink()
    assert checkpoint.read_info(tmp_path / "c") == {"step": 4, "metric": 0.5}


@pytest.mark.parametrize(
    "value",
    [object(), {1.5: 0}, {(1,): 0}, {True: 0}, np.array(["a"]), torch.eye(2).to_sparse(), {1, 2}],
    ids=["object", "float_key", "tuple_key", "bool_key", "text_array", "sparse", "set"],
)
def test_what_cannot_be_kept_exactly_is_refused_with_its_place(value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="/sampler/state"):
        save(tmp_path / "c", {"sampler": {"state": value}})
    assert files_in(tmp_path) == []


# --- accidents while writing -----------------------------------------------------------------


def fail_at_write(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """Let the ``number``-th file write put half of its bytes on the disk and then fail."""
    write, calls = checkpoint._write_file, iter(range(100))

    def broken(path: Path, data: bytes) -> None:
        if next(calls) == number:
            path.write_bytes(data[: len(data) // 2])
            raise error
        write(path, data)

    monkeypatch.setattr(checkpoint, "_write_file", broken)


@pytest.mark.parametrize("number", [0, 1])
def test_full_disk_is_one_sentence_and_leaves_the_last_good_one(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = CheckpointManager(tmp_path / "run")
    good = manager.save(1, TREE)
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        fail_at_write(patch, number, full)
        with pytest.raises(CheckpointError, match="disk is full") as caught:
            manager.save(2, {"new": torch.ones(3)})
    assert "\n" not in str(caught.value)
    assert files_in(tmp_path / "run") == [good.name]
    assert manager.latest() == good
    assert_same(load(good), TREE)
    assert manager.save(2, TREE) == manager.latest()


@pytest.mark.parametrize("number", [0, 1])
def test_interrupt_in_a_write_leaves_the_last_good_one(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "c", TREE)
    fail_at_write(monkeypatch, number, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "c", {"new": 1})
    assert files_in(tmp_path) == ["c"]
    assert_same(load(tmp_path / "c"), TREE)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_accident_while_replacing_puts_the_old_one_back(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "c", TREE)
    rename = Path.rename

    def broken(self: Path, target: Path) -> Path:
        if "unfinished" in self.name:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises((KeyboardInterrupt, CheckpointError)):
        save(tmp_path / "c", {"new": 1})
    assert files_in(tmp_path) == ["c"]
    assert_same(load(tmp_path / "c"), TREE)


def test_a_folder_that_is_no_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"meow")
    with pytest.raises(CheckpointError, match="choose another folder"):
        save(tmp_path / "photos", TREE)
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"meow"
    assert files_in(tmp_path) == ["photos"]


def test_leftovers_of_a_killed_run_are_swept_away(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    manager.save(1, TREE)
    shutil.copytree(tmp_path / "step_000000001", tmp_path / ".step_000000002.unfinished-1")
    assert manager.latest() == manager.path(1)
    manager.save(2, TREE)
    assert files_in(tmp_path) == ["step_000000001", "step_000000002"]


# --- accidents on the disk -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_truncation_anywhere_is_noticed(name: str, tmp_path: Path) -> None:
    save(tmp_path / "c", TREE)
    whole = (tmp_path / "c" / name).read_bytes()
    lengths = random.Random(0).sample(range(len(whole)), 40)
    for length in [0, 1, 7, 8, 9, len(whole) - 1, *lengths]:
        (tmp_path / "c" / name).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            load(tmp_path / "c")


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_flipped_bit_is_noticed_or_harmless(name: str, tmp_path: Path) -> None:
    save(tmp_path / "c", TREE, info={"metric": 0.25})
    whole, noticed = (tmp_path / "c" / name).read_bytes(), 0
    for bit in random.Random(1).sample(range(8 * len(whole)), 300):
        flip_bit(tmp_path / "c" / name, bit)
        try:
            assert_same(load(tmp_path / "c"), TREE)
            assert checkpoint.read_info(tmp_path / "c") == {"metric": 0.25}
        except CheckpointError as error:
            assert "\n" not in str(error)
            noticed += 1
        (tmp_path / "c" / name).write_bytes(whole)
    # Spaces between JSON values, and names of versions, may change without harm.
    assert noticed == 300 if name == "tensors.safetensors" else noticed > 200


def test_damaged_newest_checkpoint_is_passed_over(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep_last=3)
    for step in (1, 2, 3):
        manager.save(step, TREE)
    flip_bit(manager.path(3) / "tensors.safetensors", 4000)
    (manager.path(2) / "state.json").unlink()
    assert manager.latest() == manager.path(1)


def test_missing_foreign_and_newer_folders_say_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        load(tmp_path / "nowhere")
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is a file"):
        load(tmp_path / "model.pt")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with pytest.raises(CheckpointError, match="not a checkpoint of embodied-rl"):
        load(foreign)
    for content in ("[]", "{}", '{"format": "another"}'):
        (foreign / "state.json").write_text(content)
        with pytest.raises(CheckpointError, match="not a checkpoint of embodied-rl"):
            load(foreign)
    save(tmp_path / "new", TREE)
    header = json.loads((tmp_path / "new" / "state.json").read_text())
    header["format_version"] = 99
    (tmp_path / "new" / "state.json").write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match="format 99"):
        load(tmp_path / "new")


# --- many checkpoints ------------------------------------------------------------------------


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep_last=2)
    for step, metric in enumerate([0.2, 0.9, 0.9, math.nan, 0.1, None], start=1):
        manager.save(step, {"step": step}, metric=metric)
    assert manager.steps() == [3, 5, 6]
    assert manager.best() == manager.path(3)
    assert manager.latest() == manager.path(6)


def test_a_run_without_metrics_has_no_best(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    assert manager.latest() is None
    manager.save(1, {})
    assert manager.best() is None


def test_keeping_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use 1"):
        CheckpointManager(tmp_path, keep_last=0)


def test_what_a_user_types_finds_the_checkpoint(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "run" / "checkpoints")
    for step, metric in ((1, 0.9), (2, 0.3), (3, 0.5)):
        manager.save(step, {}, metric=metric)
    assert locate(manager.path(2)) == manager.path(2)
    for typed in ("run", "run/checkpoints", "run/latest", "run/checkpoints/latest"):
        assert locate(tmp_path / typed) == manager.path(3)
    assert locate(tmp_path / "run" / "best") == manager.path(1)
    assert locate(tmp_path / "run" / "checkpoints" / "best") == manager.path(1)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        locate(tmp_path / "typo")
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run folder"):
        locate(tmp_path)
