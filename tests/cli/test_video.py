"""Videos play back what went in; a missing library is one sentence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embodied_rl import video
from embodied_rl.config import EnvConfig, component
from embodied_rl.types import PolicyOutput
from embodied_rl.video import LINE_HEIGHT, MAX_LINES, VideoError, _font, _wrapped, write_video

av = pytest.importorskip("av")


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def colours(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Frames of one grey value each, 20 levels apart."""
    levels = (20 * np.arange(count) % 240).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def test_frames_come_back_in_order(tmp_path: Path) -> None:
    frames = colours(12)
    decoded = decode(write_video(tmp_path / "deep" / "v.mp4", frames, fps=10))
    assert decoded.shape == frames.shape
    np.testing.assert_allclose(decoded.mean((1, 2, 3)), frames.mean((1, 2, 3)), atol=4)


def test_odd_sizes_are_padded_for_the_codec(tmp_path: Path) -> None:
    assert decode(write_video(tmp_path / "v.mp4", colours(3, 63, 95))).shape == (3, 64, 96, 3)


def test_caption_is_below_the_picture_and_changes_with_it(tmp_path: Path) -> None:
    frames = np.full((4, 64, 200, 3), 128, np.uint8)
    captions = ["push the puck\nstep 0"] * 2 + ["push the puck\nstep 4   SUCCESS"] * 2
    decoded = decode(write_video(tmp_path / "v.mp4", frames, captions=captions)).astype(float)
    assert decoded.shape[1] >= 64 + 2 * LINE_HEIGHT
    np.testing.assert_allclose(decoded[:, :60], 128, atol=6)
    band = decoded[:, 64:]
    assert band.max() > 180
    assert np.abs(band[1] - band[0]).max() < 40
    assert np.abs(band[2] - band[1]).max() > 100


def test_long_captions_are_wrapped_to_a_few_lines_and_then_cut(tmp_path: Path) -> None:
    two = decode(write_video(tmp_path / "a.mp4", colours(2), captions=["word word word"] * 2))
    assert two.shape[1] == 64 + 2 * LINE_HEIGHT + 8
    bands = two[0, 64:].astype(int).reshape(2, -1, *two.shape[2:])[:, 4:14]
    assert (bands.max((1, 2, 3)) > 150).all()  # there is text in both lines
    many = decode(write_video(tmp_path / "b.mp4", colours(2), captions=["word " * 200] * 2))
    assert many.shape[1] == 64 + MAX_LINES * LINE_HEIGHT + 8


def test_wrapping_keeps_every_word_in_order() -> None:
    text = "pick up the black bowl between the plate and the ramekin"
    lines = _wrapped(text, 120)
    assert len(lines) > 2 and " ".join(lines) == text
    assert max(map(_font().getlength, lines)) <= 120
    assert _wrapped("step 3   reward 1", 500) == ["step 3   reward 1"]


@pytest.mark.parametrize(
    "frames", [np.zeros((0, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4), "u1")]
)
def test_wrong_frames_are_refused(frames: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frames must be uint8"):
        write_video(tmp_path / "v.mp4", frames)
    assert list(tmp_path.iterdir()) == []


def test_captions_must_match_frames(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one per frame"):
        write_video(tmp_path / "v.mp4", colours(3), captions=["a"])


def test_missing_library_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match=r"pip install 'embodied-rl\[video\]'"):
        write_video(tmp_path / "v.mp4", colours(2))
    with pytest.raises(VideoError, match=r"pip install 'embodied-rl\[video\]'"):
        video.film_run(tmp_path)


def test_no_opengl_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(VideoError, match="apt-get install libegl1"):
        video._choose_gl(required=True)
    video._choose_gl(required=False)


class Still:
    """Never moves."""

    def sample(self, obs: Any, *, deterministic: bool, generator: Any) -> PolicyOutput:
        return PolicyOutput(actions=torch.zeros(1, dtype=torch.int64))


def test_the_film_of_an_endless_game_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ale_py")
    monkeypatch.setattr(video, "MAX_SECONDS", 2)
    config = EnvConfig(simulator=component("envs", "atari", game="breakout"), num_envs=1)
    policy: Any = Still()
    frames, captions = video.film_episode(policy, config, "breakout", 3)
    played = len(frames) - video.HOLD_FRAMES
    assert played == 1 + 2 * 15 and len(captions) == len(frames)  # 15 decisions a second
    assert captions[-1].endswith("step 30   reward 0")


def test_an_interrupted_video_leaves_no_half_file(tmp_path: Path) -> None:
    class Film:
        def __len__(self) -> int:
            return 200

        def __getitem__(self, index: int) -> np.ndarray:
            if index > 150:  # later than the encoder looks ahead
                raise KeyboardInterrupt
            return colours(1)[0]

    film: Any = Film()
    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "v.mp4", film)
    assert list(tmp_path.iterdir()) == []
