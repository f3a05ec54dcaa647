"""Atari 2600 games as a ``VectorEnv``: 104 games, through ale-py or through envpool.

Observation ``image`` uint8 [S, H, W] (grey) or [3 S, H, W] (colour, channels of a screen together):
the last S screens, oldest first. An action is repeated for ``frame_skip`` frames; its screen is the
pixel-wise maximum of the last two of them (sprites flicker), shrunk by area averaging. This is the
preprocessing of V. Mnih et al., Nature 2015, and M. Machado et al., JAIR 2018, section 5, every
part an option.

Backend ``"ale"``: ale-py's native vector environments, each with one row. A native vector of many
rows only steps all of them together, while a row that has ended must wait here, and stepping rows
one by one costs 5 % more. Every game starts with its own seed, so that a start depends on nothing
that went before:

    seed of game k of group g = derive_seed(run seed, "env", game name, g, k)

An episode is a function of this seed and of its actions, sticky actions included; that is what
resume ("replay") and ``render`` use. ale-py's own autoreset never happens: rows that have ended are
reset with a seed before they are stepped again.

Backend ``"envpool"``: see ``envs/envpool.py``.

With ``terminal_on_life_loss`` an episode is one life: the next one goes on in the same game, until
the game itself is over. envpool plays no-op and FIRE actions at the start of each life, ale-py only
at the start of a game.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, TypeAlias

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from embodied_rl.envs.atari_games import GAMES, instruction
from embodied_rl.envs.base import (
    ArrayDict,
    BoolArray,
    IntArray,
    Resume,
    SimulatorVectorEnv,
    Transition,
    check_groups,
)
from embodied_rl.envs.envpool import EnvPoolSimulator, Task
from embodied_rl.envs.spaces import Array
from embodied_rl.registry import near_names
from embodied_rl.seeding import derive_seed

Backend: TypeAlias = Literal["ale", "envpool"]
MAX_FRAMES = 108_000
"""Frames of a game, no-ops at its start left out: 30 minutes, the usual limit."""


@dataclass(frozen=True, kw_only=True)
class AtariOptions:
    """What is played and how it is shown; see ``make`` for the fields."""

    game: str
    frame_skip: int = 4
    frame_stack: int = 4
    image_size: tuple[int, int] = (84, 84)
    grayscale: bool = True
    max_pool: bool = True
    noop_max: int = 30
    fire_reset: bool = True
    terminal_on_life_loss: bool = False
    clip_rewards: bool = False
    sticky_actions: float = 0.0
    full_action_space: bool = False
    actions: tuple[str, ...] = ()
    max_episode_steps: int | None = None

    @property
    def max_frames(self) -> int:
        """Frames after which a game is cut."""
        steps = self.max_episode_steps
        return MAX_FRAMES if steps is None else steps * self.frame_skip

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an observation."""
        return (self.frame_stack * (1 if self.grayscale else 3), *self.image_size)


@cache
def native_actions(game: str, *, full: bool = False) -> tuple[str, ...]:
    """Names of the actions of a game (``"NOOP"``, ``"FIRE"``, ``"UP"``, …), in native order.

    Args:
        game: one of ``GAMES``.
        full: all 18 of the joystick instead of those that have an effect in the game.
    """
    ale = _load_rom(game)
    legal = ale.getLegalActionSet() if full else ale.getMinimalActionSet()
    return tuple(action.name for action in legal)


class _Row:
    """One game console: a native vector environment of one row, and what was played on it."""

    def __init__(self, options: AtariOptions) -> None:
        height, width = options.image_size
        self.console = (
            _import_ale()
            .AtariVectorEnv(
                options.game,
                1,
                num_threads=1,
                autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP,
                max_num_frames_per_episode=options.max_frames,
                repeat_action_probability=options.sticky_actions,
                full_action_space=options.full_action_space,
                img_height=height,
                img_width=width,
                grayscale=options.grayscale,
                stack_num=options.frame_stack,
                frameskip=options.frame_skip,
                maxpool=options.max_pool,
                noop_max=options.noop_max,
                use_fire_reset=options.fire_reset,
                life_loss_info=options.terminal_on_life_loss,
                reward_clipping=options.clip_rewards,
            )
            .ale
        )
        self.seed = -1
        self.games = 0  # started so far
        self.episodes = 0
        self.played: list[int] = []
        """Native actions since the start of the game."""
        self.episode_start = 0
        """How many of them came before the present episode (with lives as episodes)."""
        self.goes_on = False
        """The last episode ended with a life, not with the game."""
        self.lives = self.frame = self.first_frame = 0
        self.obs: Array = np.zeros(0, np.uint8)

    def start_game(self, seed: int) -> None:
        """Switch on with ``seed``."""
        self.obs, info = self.console.reset(np.zeros(1, np.int64), np.array([seed]))
        self.seed, self.played = seed, []
        self.first_frame = self._read_info(info)
        self.start_episode()

    def start_episode(self) -> None:
        """What follows is the next episode."""
        self.goes_on = False
        self.episode_start = len(self.played)

    def send(self, action: int) -> None:
        """Begin a step."""
        self.played.append(action)
        self.console.send(np.array([action]), _STRENGTH)

    def recv(self) -> tuple[float, bool, bool]:
        """Finish it: (reward, terminated, truncated)."""
        frame, lives = self.frame, self.lives
        self.obs, rewards, terminated, truncated, info = self.console.recv()
        if self._read_info(info) <= frame:
            # The game was over together with the life: the console has started another by itself.
            self.goes_on = False
            return 0.0, True, False
        self.goes_on = bool(terminated[0]) and 0 < self.lives < lives
        return float(rewards[0]), bool(terminated[0]), bool(truncated[0])

    def _read_info(self, info: Mapping[str, Array]) -> int:
        self.lives, self.frame = int(info["lives"][0]), int(info["episode_frame_number"][0])
        return self.frame


_STRENGTH = np.ones(1, np.float32)  # of a paddle's turn, for games with paddles


class AleSimulator:
    """The ``Simulator`` over ale-py.

    Args:
        options: what is played.
        num_envs: N.
        seed: of the derived streams.
        group_size: G rows that start alike.
        num_threads: consoles that run at the same time; None: all.
        episode_seeds: [N] console seeds of the first games, instead of derived ones.
    """

    resume: Resume = "replay"

    def __init__(
        self,
        options: AtariOptions,
        *,
        num_envs: int,
        seed: int,
        group_size: int = 1,
        num_threads: int | None = None,
        episode_seeds: Sequence[int] | None = None,
    ) -> None:
        check_groups(num_envs, group_size)
        self.num_envs = num_envs
        self.options = options
        self.action_names = offered_actions(options)
        self._native = native_indices(options)
        self.task_names = (options.game,)
        self.instructions = (instruction(options.game),)
        self.observation_space = spaces.Dict(
            {"image": spaces.Box(0, 255, options.image_shape, np.uint8)}
        )
        self.action_space: gymnasium.Space[Any] = spaces.Discrete(len(self._native))
        self._group_size = group_size
        self._at_once = num_threads or num_envs
        self._seed = seed
        self._rows: list[_Row] = []
        self.reseed(seed, None if episode_seeds is None else np.asarray(episode_seeds, np.int64))

    def reseed(self, seed: int | None, episode_seeds: IntArray | None) -> None:
        """See ``Simulator.reseed``."""
        if episode_seeds is not None and episode_seeds.shape != (self.num_envs,):
            raise ValueError(
                f"episode_seeds has shape {episode_seeds.shape}, give ({self.num_envs},)"
            )
        self._seed = self._seed if seed is None else int(seed)
        self._episode_seeds = episode_seeds
        self._rows = [_Row(self.options) for _ in range(self.num_envs)]
        self._screens: dict[int, _Screen] = {}
        self._order: list[tuple[_Row, int]] = []
        self._sent = 0

    def reset(self, rows: IntArray, task_ids: IntArray) -> tuple[ArrayDict, IntArray]:
        """See ``Simulator.reset``; after a lost life the game goes on."""
        for index in rows:
            row = self._rows[index]
            if row.goes_on:
                row.start_episode()
            else:
                row.start_game(self._game_seed(int(index), row.games))
                row.games += 1
            row.episodes += 1
        groups = rows // self._group_size
        episodes = np.array([self._rows[index].episodes for index in rows], np.int64)
        return self._observe([self._rows[index] for index in rows]), (groups << 32) + episodes

    def _game_seed(self, index: int, game: int) -> int:
        group = index // self._group_size
        if self._episode_seeds is None:
            return derive_seed(self._seed, "env", self.options.game, group, game)
        first = int(self._episode_seeds[index])
        return first if game == 0 else derive_seed(first, "env", self.options.game, game)

    def send(self, actions: Array, rows: IntArray | None) -> None:
        """See ``Simulator.send``."""
        every = self._rows if rows is None else [self._rows[index] for index in rows]
        self._order = list(zip(every, self._native[actions].tolist(), strict=True))
        self._sent = 0
        while self._sent < self._at_once and self._send_next():
            pass

    def _send_next(self) -> bool:
        if self._sent == len(self._order):
            return False
        row, action = self._order[self._sent]
        row.send(action)
        self._sent += 1
        return True

    def recv(self) -> Transition:
        """See ``Simulator.recv``."""
        rewards = np.zeros(len(self._order), np.float32)
        terminated, truncated = np.zeros((2, len(self._order)), np.bool_)
        for k, (row, _) in enumerate(self._order):
            rewards[k], terminated[k], truncated[k] = row.recv()
            self._send_next()
        obs = self._observe([row for row, _ in self._order])
        return Transition(obs, rewards, terminated, _only(truncated, terminated), None)

    def _observe(self, rows: Sequence[_Row]) -> ArrayDict:
        """Observations [n, C, H, W] of ``rows``, as a new array."""
        channels, height, width = self.options.image_shape
        stacked = np.concatenate([row.obs for row in rows])
        if not self.options.grayscale:  # [n, S, H, W, 3]
            stacked = np.ascontiguousarray(np.moveaxis(stacked, -1, 2))
        return {"image": stacked.reshape(len(rows), channels, height, width)}

    def render(self, row: int) -> Array:
        """The screen of a row as the console shows it now, uint8 [H, W, 3].

        A second console plays the same actions from the same seed, the first time from the start
        of the game. Its speed is that of the emulator.
        """
        if row not in self._screens:
            self._screens[row] = _Screen(self.options)
        return self._screens[row].show(self._rows[row])

    def state_dict(self) -> dict[str, Any]:
        """Seeds and counts of every row, and what it played before its present episode."""
        return {
            "game": self.options.game,
            "seed": self._seed,
            "episode_seeds": None
            if self._episode_seeds is None
            else torch.from_numpy(self._episode_seeds.copy()),
            "rows": [
                {
                    "seed": row.seed,
                    "games": row.games,
                    "episodes": row.episodes,
                    "played": torch.tensor(row.played[: row.episode_start], dtype=torch.int64),
                }
                for row in self._rows
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> ArrayDict:
        """See ``Simulator.load_state_dict``; plays again what came before the present episodes."""
        if state["game"] != self.options.game:
            raise ValueError(
                f"this state is of the game {state['game']!r}: make the environment with it"
            )
        seeds = state["episode_seeds"]
        self.reseed(int(state["seed"]), None if seeds is None else seeds.numpy().copy())
        for row, saved in zip(self._rows, state["rows"], strict=True):
            row.start_game(int(saved["seed"]))
            row.games, row.episodes = int(saved["games"]), int(saved["episodes"])
            for action in saved["played"].tolist():
                row.send(action)
                row.recv()
            row.start_episode()
        return self._observe(self._rows)

    def close(self) -> None:
        """Free the consoles and their threads."""
        self._rows, self._order, self._screens = [], [], {}


class _Screen:
    """A console that follows a row, for its picture."""

    def __init__(self, options: AtariOptions) -> None:
        self._options = options
        self._seed = -1
        self._position = 0
        self._ale: Any = None

    def show(self, row: _Row) -> Array:
        """The picture [H, W, 3] of the row's present screen."""
        if self._seed != row.seed or self._position > len(row.played):
            self._start(row)
        for action in row.played[self._position :]:
            self._step(self._actions[action])
        self._position = len(row.played)
        return self._ale.getScreenRGB()

    def _start(self, row: _Row) -> None:
        """FIRE, if the game has it, then no-ops: as many frames as the row began with."""
        ale = _load_rom(self._options.game, sticky=self._options.sticky_actions, seed=row.seed)
        full = self._options.full_action_space
        self._actions = ale.getLegalActionSet() if full else ale.getMinimalActionSet()
        noop, fire = _import_ale().Action.NOOP, _import_ale().Action.FIRE
        ale.reset_game()
        if self._options.fire_reset and fire in self._actions:
            ale.act(fire)
        while ale.getEpisodeFrameNumber() < row.first_frame:
            ale.act(noop)
        self._ale, self._seed, self._position = ale, row.seed, 0
        self._last_frame = row.first_frame + self._options.max_frames

    def _step(self, action: Any) -> None:
        for _ in range(self._options.frame_skip):
            self._ale.act(action)
            if self._ale.game_over() or self._ale.getEpisodeFrameNumber() >= self._last_frame:
                return


class EnvPoolAtari(EnvPoolSimulator):
    """``EnvPoolSimulator`` of one game with the actions that are offered."""

    def __init__(self, options: AtariOptions, **common: Any) -> None:
        if not options.max_pool:
            raise ValueError("envpool always takes the maximum of two frames: use backend='ale'")
        self._native = native_indices(options)
        task = Task(
            name=options.game,
            id=envpool_id(options.game),
            instruction=instruction(options.game),
            options=_envpool_options(options),
        )
        super().__init__([task], resume="none", **common)
        self.options = options
        self.action_names = offered_actions(options)
        self.action_space: gymnasium.Space[Any] = spaces.Discrete(len(self._native))

    def send(self, actions: Array, rows: IntArray | None) -> None:
        """See ``Simulator.send``."""
        super().send(self._native[actions], rows)


def envpool_id(game: str) -> str:
    """``"ms_pacman"`` to ``"MsPacman-v5"``."""
    return "".join(part.capitalize() for part in game.split("_")) + "-v5"


def _envpool_options(options: AtariOptions) -> dict[str, Any]:
    height, width = options.image_size
    return {
        "max_episode_steps": options.max_frames // options.frame_skip,
        "stack_num": options.frame_stack,
        "frame_skip": options.frame_skip,
        "noop_max": options.noop_max,
        "episodic_life": options.terminal_on_life_loss,
        "reward_clip": options.clip_rewards,
        "use_fire_reset": options.fire_reset,
        "img_height": height,
        "img_width": width,
        "full_action_space": options.full_action_space,
        "repeat_action_probability": options.sticky_actions,
        "gray_scale": options.grayscale,
    }


def offered_actions(options: AtariOptions) -> tuple[str, ...]:
    """Names of the actions of the environment, in order.

    Raises:
        ValueError: a name that the game does not have.
    """
    native = native_actions(options.game, full=options.full_action_space)
    for name in options.actions:
        if name not in native:
            raise ValueError(
                f"{options.game} has no action {name!r}{near_names(name, native)} (it has "
                f"{', '.join(native)}; full_action_space=True offers all of the joystick)"
            )
    return options.actions or native


def native_indices(options: AtariOptions) -> IntArray:
    """[actions] int64: index of each offered action among the native ones."""
    native = native_actions(options.game, full=options.full_action_space)
    return np.array([native.index(name) for name in offered_actions(options)], np.int64)


def make(
    *,
    game: str,
    num_envs: int,
    seed: int,
    backend: Backend = "ale",
    frame_skip: int = 4,
    frame_stack: int = 4,
    image_size: tuple[int, int] = (84, 84),
    grayscale: bool = True,
    max_pool: bool = True,
    noop_max: int = 30,
    fire_reset: bool = True,
    terminal_on_life_loss: bool = False,
    clip_rewards: bool = False,
    sticky_actions: float = 0.0,
    full_action_space: bool = False,
    actions: tuple[str, ...] = (),
    chunk_length: int = 1,
    max_episode_steps: int | None = None,
    autoreset: bool = True,
    group_size: int = 1,
    device: str | torch.device = "cpu",
    num_threads: int | None = None,
    episode_seeds: Sequence[int] | None = None,
) -> SimulatorVectorEnv:
    """An Atari game. Steps are decisions of ``frame_skip`` frames each.

    The defaults score whole games. To learn, ``terminal_on_life_loss`` and ``clip_rewards`` are
    usual; undo them for evaluation (``EvalConfig.env_options``).

    Args:
        game: one of ``GAMES``, e.g. ``"ms_pacman"``.
        num_envs: N rows.
        seed: of every row's stream.
        backend: ``"ale"`` (resumes, renders) or ``"envpool"`` (does neither).
        frame_skip: frames for which an action is repeated.
        frame_stack: S, screens in an observation.
        image_size: height and width of the observation.
        grayscale: one channel per screen instead of three.
        max_pool: maximum of the last two frames.
        noop_max: no-op actions at the start of a game, fewer than that, at random.
        fire_reset: press FIRE at the start, where the game has it.
        terminal_on_life_loss: the end of a life ends the episode, not the game.
        clip_rewards: to [-1, 1].
        sticky_actions: probability that a frame repeats the action before it (0.25 in the paper).
        full_action_space: all 18 joystick actions instead of those with an effect.
        actions: names of the actions offered, in order, e.g. ``("NOOP", "RIGHT", "LEFT")`` for
            Pong, whose other three do the same; none: all.
        max_episode_steps: cut a game after this many steps; None: 108,000 frames. Where lives are
            episodes, envpool counts from the start of the life.
        chunk_length: H actions per decision.
        autoreset: SAME_STEP if True, DISABLED if False.
        group_size: G consecutive rows start alike.
        device: of observations, rewards and flags.
        num_threads: games that run at the same time; None: all of them ("ale") or as many as there
            are cores ("envpool").
        episode_seeds: [N] seeds of the rows' first games, instead of derived ones.

    Raises:
        ValueError: unknown game or action, or a number that does not fit.
    """
    given = locals()
    options = AtariOptions(**{field.name: given[field.name] for field in fields(AtariOptions)})
    _check(options, backend, group_size)
    simulator = (AleSimulator if backend == "ale" else EnvPoolAtari)(
        options,
        num_envs=num_envs,
        seed=seed,
        group_size=group_size,
        num_threads=num_threads,
        episode_seeds=episode_seeds,
    )
    return SimulatorVectorEnv(  # the time limit is the simulator's: a game may have many episodes
        simulator,
        chunk_length=chunk_length,
        autoreset=autoreset,
        group_size=group_size,
        device=device,
    )


def _check(options: AtariOptions, backend: str, group_size: int) -> None:
    if options.game not in GAMES:
        raise ValueError(
            f"there is no Atari game {options.game!r}{near_names(options.game, GAMES)}"
        )
    if backend not in ("ale", "envpool"):
        raise ValueError(f"backend={backend!r}: give 'ale' or 'envpool'")
    numbers = {
        "frame_skip": options.frame_skip,
        "frame_stack": options.frame_stack,
        "image_size": min(options.image_size),
        "noop_max": options.noop_max,
        "max_episode_steps": options.max_frames,
    }
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}={value}: give at least 1")
    if not 0 <= options.sticky_actions < 1:
        raise ValueError(f"sticky_actions={options.sticky_actions} is a probability below 1")
    if group_size > 1 and options.terminal_on_life_loss:
        raise ValueError(
            "rows of a group start alike, lives of a game do not: set terminal_on_life_loss to "
            "false, or group_size to 1"
        )


def _only(flags: BoolArray, unless: BoolArray) -> BoolArray:
    return flags & ~unless


def _load_rom(game: str, *, sticky: float = 0.0, seed: int = 0) -> Any:
    """A console with the game in it."""
    ale_py = _import_ale()
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", sticky)
    ale.setInt("random_seed", seed)
    ale.loadROM(os.fspath(ale_py.roms.get_rom_path(game)))
    return ale


def _import_ale() -> Any:
    try:
        import ale_py
        import ale_py.roms
    except ImportError as error:
        raise ValueError("Atari needs ale-py: pip install 'embodied-rl[atari]'") from error
    return ale_py
