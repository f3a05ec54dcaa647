"""A tiny model learns by trial and error what colour an image has."""

from typing import Any

import torch
from conversations import SIDE, conversations, make, no_actions

from embodied_rl import rollout as rollouts
from embodied_rl.advantages.group_relative import group_relative
from embodied_rl.algorithms.grpo import GRPO
from embodied_rl.algorithms.sft import SFT
from embodied_rl.config import ImitationConfig
from embodied_rl.policies.vlm import text

COLOURS = ("red", "green", "blue")
SHADES, GROUP = 4, 8
QUESTION = "What colour? Answer with one word."


def images_of(shades, *, blank=False):
    """One plain image of each colour in each shade [3 * S, H, W, 3]; blank ones are all grey."""
    images = torch.zeros(3 * len(shades), SIDE, SIDE, 3, dtype=torch.uint8)
    for row, (colour, shade) in enumerate((c, s) for c in range(3) for s in shades):
        images[row, ..., colour] = shade
    return torch.full_like(images, 128) if blank else images


class ColourQuestions:
    """Every row asks for the colour of its image once; the reward is 1 for the right word."""

    def __init__(self, shades, *, group=1, blank=False):
        images = images_of(shades, blank=blank)
        self.num_envs = len(images) * group
        self.device = torch.device("cpu")
        self.obs = conversations(*((QUESTION, [image]) for image in images), copies=group)
        self.answers = torch.arange(3).repeat_interleave(len(shades) * group)
        self.group_ids = torch.arange(len(images)).repeat_interleave(group)
        self.task_ids = torch.zeros(self.num_envs, dtype=torch.int64)

    def reset(self, *, seed=None, options=None):
        return self.obs, {}

    def send(self, actions):
        said = text.from_bytes(actions)
        self.right = torch.tensor(
            [word == COLOURS[int(a)] for word, a in zip(said, self.answers, strict=True)]
        )

    def recv(self):
        yes = torch.ones(self.num_envs, dtype=torch.bool)
        reward = self.right.float()
        info = {
            "success": self.right,
            "valid": yes,
            "num_env_steps": yes.long(),
            "unit_mask": yes.unsqueeze(1),
            "episode": {"return": reward},
            "_episode": yes,
        }
        return self.obs, reward, yes, ~yes, info


def play(env, policy, **options):
    return rollouts.collect(env, policy, rollouts.start(env), **options)


def accuracy(policy, env):
    return float(play(env, policy, deterministic=True, generator=None).rewards.mean())


def test_grpo_learns_colours_and_needs_the_image_for_it():
    policy = make(max_new_tokens=1)
    policy.train()
    generator = torch.Generator().manual_seed(1)
    shades = torch.linspace(140, 250, SHADES).round().tolist()
    env: Any = ColourQuestions(shades, group=GROUP)
    unseen: Any = ColourQuestions((150, 185, 225))
    blank: Any = ColourQuestions((150, 185, 225), blank=True)

    # imitation of answers that are colours, but not those of the images: the form, not the content
    words = torch.arange(env.num_envs) % 3
    actions = text.to_bytes([COLOURS[int(w)] for w in words], width=no_actions(1).shape[1])
    demonstrations = (env.obs, actions, torch.ones(env.num_envs, 1, dtype=torch.bool))
    config = ImitationConfig(num_steps=25, batch_size=48, learning_rate=2e-3)
    losses = [
        float(x)
        for x in SFT(policy, config, demonstrations=demonstrations).gradient_steps(
            generator=generator
        )
    ]
    before = float(play(env, policy, generator=generator).rewards.mean())

    algorithm = GRPO(policy, GRPO.Config(learning_rate=5e-4, num_epochs=1, num_minibatches=1))
    for _ in range(150):
        rollout = play(env, policy, generator=generator)
        if float(rollout.rewards.mean()) > 0.97:
            break
        algorithm.update(rollout, group_relative(rollout), generator=generator)
    after = {"seen": accuracy(policy, ColourQuestions(shades)), "unseen": accuracy(policy, unseen)}
    assert losses[-1] < 1.5  # three words: ln 3 = 1.1 nats
    assert 0.15 < before < 0.5
    assert after["unseen"] >= 0.9 and after["seen"] >= 0.9
    assert accuracy(policy, blank) < 0.4
