"""Videos with a caption under every frame, and films of trained policies.

Axes: T frame, height, width, 3 colour channels (RGB, uint8).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embodied_rl.config import EnvConfig, evaluation_env
from embodied_rl.demonstrations import steps_per_second
from embodied_rl.doctor import gl_backend
from embodied_rl.envs.base import Renderer
from embodied_rl.envs.wrappers import NormalizeObservation
from embodied_rl.metrics import Progress
from embodied_rl.registry import options_of, registry
from embodied_rl.types import Policy, TensorDict, VectorEnv

LINE_HEIGHT = 18
"""Pixels per line of a caption."""
FRAME_SKIP = 4
"""Simulator steps per frame of a film: 80 steps and 20 frames a second are real time."""
HOLD_FRAMES = 10
"""How often the last picture of an episode is repeated."""
NEEDS_GL = ("metaworld", "libero")
"""Simulators that draw nothing without OpenGL."""
MIN_WIDTH = 256
"""Pixels that a line of a caption needs."""
MAX_SECONDS = 60
"""Length at which the film of an episode is cut; a badly played game may last half an hour."""
MAX_LINES = 4
"""Lines that one line of a caption may be wrapped to."""


class VideoError(RuntimeError):
    """A video that cannot be made; the message says what is missing."""


def write_video(
    path: str | Path,
    frames: Sequence[np.ndarray] | np.ndarray,
    *,
    captions: Sequence[str] = (),
    fps: int = 30,
) -> Path:
    """Write an mp4 (H.264) file.

    Args:
        path: file to write; missing folders are made.
        frames: [T, height, width, 3] uint8.
        captions: one text per frame, drawn under the picture, wrapped to its width (4 lines at
            most for each of its own). Empty for none.
        fps: frames per second.

    Returns:
        ``path``.

    Raises:
        VideoError: PyAV is not installed.
        ValueError: no frames, other shapes, or not one caption per frame.
    """
    path = Path(path)
    first = np.asarray(frames[0]) if len(frames) else np.zeros(0)
    if first.ndim != 3 or first.shape[-1] != 3 or first.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 [T, height, width, 3], got {first.shape}")
    if captions and len(captions) != len(frames):
        raise ValueError(f"{len(captions)} captions for {len(frames)} frames: give one per frame")
    av = _import_av()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with av.open(str(unfinished), "w", format="mp4", options={"movflags": "faststart"}) as file:
            stream = file.add_stream("libx264", rate=fps, options={"crf": "23"})
            # The format that every browser plays; it needs even sizes.
            stream.pix_fmt = "yuv420p"
            for index, picture in enumerate(_captioned(frames, captions)):
                if index == 0:
                    stream.height, stream.width = picture.shape[:2]
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            file.mux(stream.encode())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise VideoError(
            "videos need the PyAV library: pip install 'embodied-rl[video]'"
        ) from error
    return av


def _captioned(
    frames: Sequence[np.ndarray] | np.ndarray, captions: Sequence[str]
) -> Iterator[np.ndarray]:
    """Frames of even size, each with its caption on a dark band below it."""
    wrapped = {text: _wrapped(text, np.asarray(frames[0]).shape[1] - 12) for text in set(captions)}
    lines = max(map(len, wrapped.values()), default=0)
    band = lines * LINE_HEIGHT + (8 if lines else 0)
    drawn: dict[str, np.ndarray] = {}
    for index, frame in enumerate(frames):
        height, width = frame.shape[0], frame.shape[1]
        picture = np.zeros((height + band + height % 2, width + width % 2, 3), np.uint8)
        picture[:height, :width] = frame
        if lines:
            text = captions[index]
            if text not in drawn:
                drawn[text] = _draw_text(wrapped[text], width, band)
            picture[height : height + band, :width] = drawn[text]
        yield picture


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` pixels; what then does not fit is cut."""
    font = _font()
    lines: list[str] = []
    for paragraph in text.split("\n"):
        room, line = len(lines) + MAX_LINES - 1, ""
        for word in paragraph.split(" "):  # several spaces are kept
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > width and len(lines) < room:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return [_cut(line, width) for line in lines]


def _cut(line: str, width: int) -> str:
    if _font().getlength(line) <= width:
        return line
    while line and _font().getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"


@cache
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(13)


def _draw_text(lines: Sequence[str], width: int, height: int) -> np.ndarray:
    """[height, width, 3] uint8: light text on a dark band."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, height), (24, 26, 30))
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((6, 4 + number * LINE_HEIGHT), line, font=_font(), fill=(235, 235, 235))
    return np.asarray(image)


# --- films of policies -----------------------------------------------------------------------


def film_run(
    run: str | Path, *, checkpoint: str = "", episodes: int = 3, output: str | Path = ""
) -> Path:
    """Film a saved policy, greedily, on the first episodes of the held-out manifest.

    Args:
        run: run folder or checkpoint folder.
        checkpoint: name of a checkpoint of the run (``sft``, ``best``); the newest one by default.
        episodes: how many, one after the other.
        output: mp4 file; ``videos/<checkpoint or policy>.mp4`` in the run folder by default.

    Returns:
        The file.

    Raises:
        VideoError: a library is missing, or the simulator has no pictures.
        CheckpointError: no readable checkpoint there.
    """
    from embodied_rl.build import load_policy
    from embodied_rl.evaluate import make_manifest

    run = Path(run)
    _import_av()
    named = run / "checkpoints" / checkpoint
    policy, config, state = load_policy(named if named.is_dir() else run / checkpoint)
    simulator = config.env.simulator.name
    _choose_gl(required=simulator in NEEDS_GL)
    metaworld = simulator == "metaworld"
    if metaworld and state["normalizer"] is not None:
        raise VideoError(
            "films of metaworld are made of policies without running observation statistics"
        )
    manifest = make_manifest(
        state["task_names"], episodes=episodes, split="test", simulator=simulator
    )
    frames: list[np.ndarray] = []
    captions: list[str] = []
    progress = Progress()
    for count, (task, seed) in enumerate(zip(manifest.tasks, manifest.seeds, strict=True)):
        progress.update("filming", count, episodes)
        if metaworld:
            pictures, texts = _film_episode(policy, config.env, task, seed, state["task_names"])
        else:
            pictures, texts = film_episode(
                policy, evaluation_env(config), task, seed, normalizer=state["normalizer"]
            )
        frames += pictures
        captions += texts
    progress.update("filming", episodes, episodes)
    progress.close()
    target = Path(output) if output else run / "videos" / f"{checkpoint or 'policy'}.mp4"
    fps = steps_per_second(simulator) // (FRAME_SKIP if metaworld else 1)
    return write_video(target, frames, captions=captions, fps=fps)


def film_episode(
    policy: Policy,
    config: EnvConfig,
    task: str,
    seed: int,
    *,
    normalizer: dict[str, Any] | None = None,
) -> tuple[list[np.ndarray], list[str]]:
    """Frames and captions of one greedy episode in any environment that draws pictures.

    What happens after ``MAX_SECONDS`` is left out.

    Args:
        policy: decides every ``config.chunk_length`` steps.
        config: the environment; a simulator with an option ``render`` is made with it.
        task: name of the task.
        seed: of the episode.
        normalizer: state of the observation statistics the policy was trained with.

    Raises:
        VideoError: the simulator has no pictures.
    """
    env = _make_filmed(config, seed, normalizer)
    assert isinstance(env, Renderer)
    task_id = env.task_names.index(task)
    frames: list[np.ndarray] = []
    captions: list[str] = []
    total, step, done, solved = 0.0, 0, False, False
    limit = MAX_SECONDS * steps_per_second(config.simulator.name)

    def shoot() -> None:
        try:
            frames.append(_enlarged(env.render(0)))
        except ValueError as error:
            raise VideoError(str(error)) from error
        instruction = env.instructions[task_id] or task
        mark = "   SUCCESS" if solved else ""
        captions.append(f"{instruction}\nstep {step}   reward {total:.3g}{mark}")

    try:
        obs, _ = env.reset(options={"task_ids": torch.tensor([task_id])})
        shoot()
        while not done:
            with torch.no_grad():
                chunk = policy.sample(obs, deterministic=True, generator=None).actions
            actions = chunk.unsqueeze(1) if config.chunk_length == 1 else chunk
            for action in actions.unbind(1):
                obs, rewards, terminated, truncated, info = env.step(action)
                step += 1
                total += float(info.get("raw_rewards", rewards)[0])
                solved |= bool(info["success"][0])
                done = bool((terminated | truncated)[0])
                shoot()
                done |= step == limit
                if done:
                    break
    finally:
        env.close()
    return [*frames, *frames[-1:] * HOLD_FRAMES], [*captions, *captions[-1:] * HOLD_FRAMES]


def _enlarged(picture: np.ndarray) -> np.ndarray:
    """Whole multiples of small pictures: below ``MIN_WIDTH`` a caption does not fit."""
    factor = -(-MIN_WIDTH // picture.shape[1])
    return picture.repeat(factor, 0).repeat(factor, 1)


def _make_filmed(config: EnvConfig, seed: int, normalizer: dict[str, Any] | None) -> VectorEnv:
    """One row, stepped action by action."""
    from embodied_rl.build import build_env

    takes_render = "render" in options_of(registry("envs").get(config.simulator.name))
    env = build_env(
        config,
        seed=0,
        autoreset=False,
        num_envs=1,
        group_size=1,
        chunk_length=1,
        episode_seeds=[seed],
        normalize=normalizer is not None,
        options={"render": True} if takes_render else None,
    )
    if not isinstance(env, Renderer):
        env.close()
        raise VideoError(f"environment {config.simulator.name} has no pictures")
    if normalizer is not None:
        assert isinstance(env, NormalizeObservation)
        env.load_statistics(normalizer)
        env.training = False
    return env


def _choose_gl(*, required: bool) -> None:
    """Set MUJOCO_GL before mujoco is imported: with one that cannot load, the import fails."""
    backend = gl_backend()
    if backend is not None:
        os.environ["MUJOCO_GL"] = backend
    elif required:
        raise VideoError(
            "films need the system library EGL or OSMesa: apt-get install libegl1 libgl1-mesa-dri"
        )


def _film_episode(
    policy: Policy, env: EnvConfig, task: str, seed: int, task_names: Sequence[str]
) -> tuple[list[np.ndarray], list[str]]:
    """Frames and captions of one episode."""
    from embodied_rl.envs.metaworld_render import render_episode
    from embodied_rl.envs.metaworld_tasks import INSTRUCTIONS

    limit = env.max_episode_steps or 500
    act = _actor(policy, env, [INSTRUCTIONS[name] for name in task_names], task_names.index(task))
    try:
        frames, success = render_episode(
            task, seed, act, max_episode_steps=limit, frame_skip=FRAME_SKIP, hold=HOLD_FRAMES
        )
    except (RuntimeError, ImportError, ValueError) as error:
        raise VideoError(str(error)) from error
    solved = len(frames) - HOLD_FRAMES - 1 if success else len(frames)
    captions = [
        f"{INSTRUCTIONS[task]}\nstep {min(i, solved) * FRAME_SKIP}"
        f"   reward {int(i >= solved)}{'   SUCCESS' if i >= solved else ''}"
        for i in range(len(frames))
    ]
    return list(frames), captions


def _actor(
    policy: Policy, env: EnvConfig, instructions: Sequence[str], task_id: int
) -> Callable[[np.ndarray], np.ndarray]:
    """The policy as a function: observation [39] -> actions [H, D], greedy."""
    from embodied_rl.envs.metaworld import relative_features

    extra: TensorDict = {}
    if env.instruction_embedding != "none":
        from embodied_rl.instructions import embed_instructions

        table = embed_instructions(instructions, kind=env.instruction_embedding)
        extra["instruction"] = table[task_id : task_id + 1]

    @torch.no_grad()
    def act(observation: np.ndarray) -> np.ndarray:
        state = observation[None].astype(np.float32)
        arrays = {"state": state, "relative": relative_features(state)}
        obs = {name: torch.from_numpy(value) for name, value in arrays.items()} | extra
        return policy.sample(obs, deterministic=True, generator=None).actions[0].numpy()

    return act
