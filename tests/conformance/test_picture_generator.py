from typing import Any

import pytest
import torch

from embodied_rl.policies import make_policy
from embodied_rl.policies.characters import END
from embodied_rl.types import PolicySpec

CHAT = b'[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "which?"}]}]'
SHAPES = {"chat": (96,), "images": (2, 12, 16, 3)}
SPEC = PolicySpec(
    obs_shapes=SHAPES, obs_dtypes={"chat": "uint8", "images": "uint8"}, text_bytes=8, num_actions=0
)


def make(**options: Any) -> Any:
    torch.manual_seed(0)
    return make_policy("picture_generator", SPEC, dim=32, prompt_length=6, **options)


def pictures(count):
    """Rows whose second picture has a bright upper or lower half, and the words for it."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 60, (count, 2, 12, 16, 3), generator=generator, dtype=torch.uint8)
    upper = torch.rand(count, generator=generator) < 0.5
    for row, first in enumerate(upper.tolist()):
        images[row, 1, slice(0, 6) if first else slice(6, 12)] += 150
    chat = torch.zeros(count, 96, dtype=torch.uint8)
    chat[:, : len(CHAT)] = torch.tensor(list(CHAT), dtype=torch.uint8)
    words = torch.zeros(count, 8, dtype=torch.uint8)
    for row, first in enumerate(upper.tolist()):
        word = b"up" if first else b"down"
        words[row, : len(word)] = torch.tensor(list(word), dtype=torch.uint8)
    return {"chat": chat, "images": images}, words


def test_it_learns_what_only_the_pictures_say():
    policy = make(max_new_tokens=6)
    obs, words = pictures(256)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    mask = torch.ones(256, 1, dtype=torch.bool)
    for _ in range(40):
        loss = policy.imitation_loss(obs, words, mask, generator=None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unseen, expected = pictures(400)
    unseen = {name: value[256:] for name, value in unseen.items()}
    said = policy.sample(unseen, deterministic=True, generator=None).actions
    assert (said == expected[256:]).all(1).float().mean() > 0.95
    blank = {**unseen, "images": torch.full_like(unseen["images"], 128)}
    said = policy.sample(blank, deterministic=True, generator=None).actions
    assert (said == expected[256:]).all(1).float().mean() < 0.7


def test_answers_are_short_enough_and_each_row_sees_its_own_pictures():
    policy = make(max_new_tokens=5)
    obs, _ = pictures(6)
    sampled = policy.sample(obs, generator=torch.Generator().manual_seed(1))
    assert sampled.replay["tokens"].shape == (6, 5) and END == 0
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    mixed = {name: value[order] for name, value in obs.items()}
    replay = {name: value[order] for name, value in sampled.replay.items()}
    again = policy.log_prob(mixed, sampled.actions[order], replay)
    torch.testing.assert_close(again.log_probs, sampled.log_probs[order])


def test_equal_rows_are_read_once_and_the_pictures_count_as_much_as_the_words():
    policy = make(max_new_tokens=5)
    obs, _ = pictures(3)
    read = []
    policy.eye.register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0])))
    rows = torch.tensor([0, 1, 0, 2, 1, 1])
    repeated = {name: value[rows] for name, value in obs.items()}
    alone = policy.sample(obs, generator=torch.Generator().manual_seed(1))
    replay = {name: value[rows] for name, value in alone.replay.items()}
    scored = policy.log_prob(repeated, alone.actions[rows], replay)
    assert read == [6, 6]  # two pictures in each of three rows
    torch.testing.assert_close(scored.log_probs, alone.log_probs[rows])
    changed = {**repeated, "images": repeated["images"].clone()}
    changed["images"][2, 0, 0, 0, 0] ^= 255
    policy.log_prob(changed, alone.actions[rows], replay)
    assert read[-1] == 8


def test_the_critic_sees_the_pictures():
    policy = make(max_new_tokens=5, critic="trunk")
    obs, _ = pictures(2)
    values = policy.value(obs)
    assert values.shape == (2,) and (values[0] - values[1]).abs() > 1e-6


def test_where_a_picture_lies_is_told_apart():
    policy = make(max_new_tokens=5)
    obs, words = pictures(1)
    swapped = {**obs, "images": obs["images"].flip(1)}
    mask = torch.ones(1, 1, dtype=torch.bool)
    with torch.no_grad():
        policy.gist.weight.zero_()  # the looks alone
        first, second = (
            policy.imitation_loss(o, words, mask, generator=None) for o in (obs, swapped)
        )
    assert (first - second).abs() > 1e-6


def test_without_pictures_it_is_refused_with_a_way_out():
    spec = PolicySpec(
        obs_shapes={"chat": (96,)}, obs_dtypes={"chat": "uint8"}, text_bytes=8, num_actions=0
    )
    with pytest.raises(ValueError, match="use string_generator"):
        make_policy("picture_generator", spec, max_new_tokens=4)
