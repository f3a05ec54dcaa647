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


def test_without_pictures_it_is_refused_with_a_way_out():
    spec = PolicySpec(
        obs_shapes={"chat": (96,)}, obs_dtypes={"chat": "uint8"}, text_bytes=8, num_actions=0
    )
    with pytest.raises(ValueError, match="use string_generator"):
        make_policy("picture_generator", spec, max_new_tokens=4)
