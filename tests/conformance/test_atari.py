"""Atari beside the contract of every environment: against ale-py and envpool themselves."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from embodied_rl.check_env import CHECKS, same
from embodied_rl.envs import make_env
from embodied_rl.envs.atari import envpool_id, make, native_actions
from embodied_rl.envs.atari_games import GAMES
from embodied_rl.seeding import derive_seed

ale_py = pytest.importorskip("ale_py")
NEXT_STEP = gymnasium.vector.AutoresetMode.NEXT_STEP


def native(game: str, **options: Any) -> Any:
    """One row of ale-py with nothing of ours around it."""
    options = {"num_threads": 1, "reward_clipping": False, "autoreset_mode": NEXT_STEP} | options
    return ale_py.AtariVectorEnv(game, 1, **options)


def actions_for(count: int, steps: int, rows: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, count, (steps, rows), generator=generator)


def test_the_games_are_those_of_ale_py_and_of_envpool() -> None:
    envpool = pytest.importorskip("envpool")
    gymnasium.register_envs(ale_py)
    ids = {spec.id for spec in gymnasium.registry.values() if spec.id.startswith("ALE/")}
    assert {f"ale/{envpool_id(game)}".lower() for game in GAMES} == {id.lower() for id in ids}
    assert {envpool_id(game) for game in GAMES} <= set(envpool.list_all_envs())
    assert len(GAMES) == 104


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_steps_are_those_of_ale_py(sticky: float) -> None:
    env = make(game="breakout", num_envs=1, seed=0, episode_seeds=[11], sticky_actions=sticky)
    reference = native("breakout", repeat_action_probability=sticky)
    obs, _ = env.reset()
    expected, _ = reference.reset(seed=np.array([11]))
    assert np.array_equal(obs["image"].numpy(), expected)
    for action in actions_for(4, 500):
        obs, rewards, terminated, _, info = env.step(action)
        expected, reward, over, _, _ = reference.step(action.numpy())
        assert np.array_equal(info["final_obs"]["image"].numpy(), expected)
        assert rewards.tolist() == reward.tolist() and terminated.tolist() == over.tolist()
        if bool(terminated):
            return
    pytest.fail("random play loses five lives in 500 steps")


def test_a_life_is_an_episode_and_the_game_goes_on() -> None:
    options: dict[str, Any] = {"game": "breakout", "num_envs": 1, "seed": 0, "episode_seeds": [11]}
    lives = make(**options, terminal_on_life_loss=True)
    reference = native("breakout")
    lives.reset()
    _, before = reference.reset(seed=np.array([11]))
    ends, starts = 0, {int(lives.group_ids)}
    for action in actions_for(4, 500):
        obs, _, terminated, _, info = lives.step(action)
        expected, _, over, _, now = reference.step(action.numpy())
        assert np.array_equal(info["final_obs"]["image"].numpy(), expected)
        assert bool(terminated) == (now["lives"][0] < before["lives"][0])
        ends += bool(terminated)
        starts.add(int(lives.group_ids))
        if over[0]:
            break
        assert np.array_equal(obs["image"].numpy(), expected)
        before = now
    assert ends == 5 and len(starts) == 6
    # The next episode is another game, with its own seed.
    expected, _ = reference.reset(seed=np.array([derive_seed(11, "env", "breakout", 1)]))
    assert np.array_equal(obs["image"].numpy(), expected)  # type: ignore[reportPossiblyUnbound]


def test_rewards_are_clipped_only_if_asked() -> None:
    rewards = {}
    for clip in (False, True):
        env = make(game="space_invaders", num_envs=1, seed=1, clip_rewards=clip)
        env.reset()
        rewards[clip] = torch.cat([env.step(a)[1] for a in actions_for(6, 200)])
    assert float(rewards[False].max()) > 1
    assert torch.equal(rewards[True], rewards[False].sign())


@pytest.mark.parametrize("backend", ["ale", "envpool"])
def test_offered_actions_are_the_named_ones(backend: Any) -> None:
    names = native_actions("pong")
    assert names[:4] == ("NOOP", "FIRE", "RIGHT", "LEFT")
    options: dict[str, Any] = {"game": "pong", "num_envs": 2, "seed": 4, "backend": backend}
    few, all_of_them = make(**options, actions=("LEFT", "NOOP", "RIGHT")), make(**options)
    assert few.single_action_space == gymnasium.spaces.Discrete(3)
    assert same(few.reset()[0], all_of_them.reset()[0])
    meant = torch.tensor([3, 0, 2])
    for action in actions_for(3, 40, rows=2):
        assert same(few.step(action), all_of_them.step(meant[action]))


def test_colour_screens_are_stacked_oldest_first() -> None:
    options: dict[str, Any] = {"game": "pong", "num_envs": 2, "seed": 4, "grayscale": False}
    env = make(**options, frame_stack=3, image_size=(52, 44))
    single = make(**options, frame_stack=1, image_size=(52, 44))
    reference = native("pong", grayscale=False, stack_num=1, img_height=52, img_width=44)
    env.reset()
    single.reset()
    reference.reset(seed=np.array([single.simulator.state_dict()["rows"][1]["seed"]]))  # type: ignore[index]
    seen = []
    for action in actions_for(6, 40, rows=2):
        seen.append(single.step(action)[0]["image"])
        obs = env.step(action)[0]["image"]
        expected = reference.step(action[1:].numpy())[0]  # [1, 1, H, W, 3]
        assert np.array_equal(seen[-1][1].permute(1, 2, 0).numpy(), expected[0, 0])
    assert obs.shape == (2, 9, 52, 44)  # type: ignore[reportPossiblyUnbound]
    assert torch.equal(obs, torch.cat(seen[-3:], 1))  # type: ignore[reportPossiblyUnbound]


def test_render_shows_the_screen_that_the_row_is_at() -> None:
    env = make(
        game="breakout",
        num_envs=2,
        seed=0,
        image_size=(210, 160),
        grayscale=False,
        max_pool=False,
        frame_stack=1,
        sticky_actions=0.25,
        max_episode_steps=60,
    )
    simulator: Any = env.simulator
    obs = env.reset()[0]
    for step, action in enumerate(actions_for(4, 150, rows=2)):
        if step % 7 == 0:  # pictures may be asked for at any time
            picture = simulator.render(1)
            assert picture.shape == (210, 160, 3) and picture.dtype == np.uint8
            assert np.array_equal(picture, obs["image"][1].permute(1, 2, 0).numpy())
        obs = env.step(action)[0]


def test_the_time_limit_cuts_the_game_and_not_the_life() -> None:
    env = make(
        game="breakout",
        num_envs=1,
        seed=0,
        terminal_on_life_loss=True,
        max_episode_steps=70,
    )
    env.reset()
    lengths = []
    for action in actions_for(4, 75):
        _, _, terminated, truncated, info = env.step(action)
        if bool(terminated | truncated):
            lengths.append((int(info["episode"]["length"]), bool(truncated)))
        if bool(truncated):
            break
    assert len(lengths) > 1 and lengths[-1][1]
    assert sum(length for length, _ in lengths) == 70


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"game": "pongg"}, "did you mean 'pong'"),
        ({"backend": "retro"}, "give 'ale' or 'envpool'"),
        ({"actions": ("UP",)}, "pong has no action 'UP'"),
        ({"frame_skip": 0}, "frame_skip=0: give at least 1"),
        ({"sticky_actions": 1.0}, "is a probability below 1"),
        ({"terminal_on_life_loss": True, "group_size": 2}, "lives of a game do not"),
        ({"backend": "envpool", "max_pool": False}, "use backend='ale'"),
    ],
)
def test_wrong_options_are_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_env("atari", **({"game": "pong", "num_envs": 2, "seed": 0} | options))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ale", "envpool"])
@pytest.mark.parametrize("game", GAMES)
def test_every_game_keeps_the_contract(game: str, backend: str) -> None:
    options: dict[str, Any] = {"game": game, "backend": backend}
    for check in ("spaces", "autoreset", "chunks", "groups"):
        CHECKS[check][0](lambda **given: make_env("atari", **options, **given))


@pytest.mark.slow
@pytest.mark.parametrize("game", GAMES)
def test_every_game_is_a_function_of_seed_and_actions(game: str) -> None:
    options: dict[str, Any] = {"game": game, "num_envs": 2, "seed": 1, "sticky_actions": 0.25}
    lives: dict[str, Any] = {"terminal_on_life_loss": True, "clip_rewards": True}
    first, again = make(**options, **lives), make(**options, **lives, num_threads=1)
    assert same(first.reset()[0], again.reset()[0])
    for action in actions_for(len(native_actions(game)), 400, rows=2):
        assert same(first.step(action), again.step(action))
