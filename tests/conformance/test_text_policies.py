"""What the small policies that answer in words owe the rest of the library."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embodied_rl.advantages.gae import gae
from embodied_rl.algorithms.grpo import GRPO
from embodied_rl.algorithms.ppo import PPO
from embodied_rl.config import EnvConfig, EvalConfig, ImitationConfig, TrainConfig, component
from embodied_rl.metrics import read_jsonl
from embodied_rl.policies import make_policy
from embodied_rl.policies.characters import Alphabet, read_prompts
from embodied_rl.trainer import train
from embodied_rl.types import PolicySpec, Rollout, TensorDict

CHAT, ANSWER = 256, 12
SPEC = PolicySpec(
    obs_shapes={"chat": (CHAT,), "images": (1, 8, 8, 3)},
    obs_dtypes={"chat": "uint8", "images": "uint8"},
    text_bytes=ANSWER,
    num_actions=0,
)
SMALL: dict[str, dict[str, Any]] = {
    "masked_diffusion": {"dim": 16, "depth": 1, "heads": 2, "prompt_length": 12},
    "picture_generator": {"dim": 16, "prompt_length": 12, "max_new_tokens": 12},
    "string_generator": {"dim": 16, "prompt_length": 12},
}
every_policy = pytest.mark.parametrize("name", SMALL)


def make(name: str, *, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    policy: Any = make_policy(name, SPEC, **{**SMALL[name], "alphabet": "abc12", **options})
    with torch.no_grad():  # nothing near zero: zero heads hide paths
        policy.head.weight.mul_(4.0)
    return policy


def chat_of(*texts: str) -> TensorDict:
    rows = torch.zeros(len(texts), CHAT, dtype=torch.uint8)
    for row, text in zip(rows, texts, strict=True):
        content = [{"type": "image"}, {"type": "text", "text": text}]
        data = json.dumps([{"role": "user", "content": content}]).encode()
        row[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
    shades = torch.tensor([37 * len(text) % 256 for text in texts], dtype=torch.uint8)
    return {"chat": rows, "images": shades.view(-1, 1, 1, 1, 1).expand(-1, 1, 8, 8, 3).clone()}


OBS = chat_of("one", "two", "one", "", "a prompt longer than twelve bytes", "three")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_policy
def test_the_ratio_is_one_before_the_first_update(name):
    policy = make(name)
    sampled = policy.sample(OBS, generator=generator())
    scored = policy.log_prob(OBS, sampled.actions, sampled.replay)
    torch.testing.assert_close(scored.log_probs, sampled.log_probs, atol=2e-5, rtol=1e-5)
    assert scored.log_probs.requires_grad and not sampled.log_probs.requires_grad
    assert sampled.log_probs.shape == sampled.unit_mask.shape == scored.entropy.shape
    assert (scored.entropy >= 0).all() and (scored.log_probs <= 1e-6).all()


@every_policy
def test_the_same_generator_gives_the_same_sample_and_another_one_another(name):
    policy = make(name)
    first, again = (policy.sample(OBS, generator=generator(1)).actions for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, policy.sample(OBS, generator=generator(2)).actions)
    greedy = policy.sample(OBS, deterministic=True, generator=generator(1))
    assert greedy.log_probs is None and torch.equal(greedy.actions[0], greedy.actions[2])


@pytest.mark.parametrize("name", ["picture_generator", "string_generator"])
def test_nothing_is_computed_after_the_longest_answer(name, monkeypatch):
    policy, widths = make(name), []
    answers = torch.zeros(6, ANSWER, dtype=torch.uint8)
    answers[:, 0], answers[2, :2] = ord("a"), torch.tensor([ord("b"), ord("1")])
    replay = {
        "tokens": policy.alphabet.to_tokens(answers, length=ANSWER),
        "num_tokens": torch.tensor([2, 2, 3, 2, 2, 2]),
    }
    full = {**replay, "num_tokens": torch.tensor([12, 2, 3, 2, 2, 2])}
    write = policy.writer.forward
    monkeypatch.setattr(
        policy.writer, "forward", lambda x, state: widths.append(x.shape[1]) or write(x, state)
    )
    short, long = (policy.log_prob(OBS, answers, given) for given in (replay, full))
    assert widths == [3, 12] and short.log_probs.shape == long.log_probs.shape == (6, ANSWER)
    torch.testing.assert_close(short.log_probs[1:], long.log_probs[1:])
    torch.testing.assert_close(short.entropy[1:], long.entropy[1:])
    assert (short.log_probs[:, 3:] == 0).all() and (short.entropy[:, 3:] == 0).all()
    with torch.no_grad():
        policy.head.bias[0] = 50.0  # whoever writes ends at once
    widths.clear()
    assert not policy.sample(OBS, generator=generator()).actions.any()
    assert widths == [1, 1]


@every_policy
def test_permuting_rows_and_noise_permutes_the_sample(name, monkeypatch):
    policy, order = make(name), torch.tensor([3, 0, 5, 1, 4, 2])
    plain = policy.sample(OBS, generator=generator())

    def permuted(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **options: draw(*args, **options)[order]

    monkeypatch.setattr(torch, "rand", permuted(torch.rand))
    moved = policy.sample({k: x[order] for k, x in OBS.items()}, generator=generator())
    assert torch.equal(moved.actions, plain.actions[order])
    torch.testing.assert_close(moved.log_probs, plain.log_probs[order], atol=2e-5, rtol=1e-5)


@every_policy
def test_one_token_is_drawn_and_scored_with_its_exact_probability(name):
    length = "answer_length" if name == "masked_diffusion" else "max_new_tokens"
    policy = make(name, **{length: 1})
    obs = {key: x[:1].expand(4000, *x.shape[1:]) for key, x in OBS.items()}
    sampled = policy.sample(obs, generator=generator())
    tokens, log_probs = sampled.replay["tokens"][:, 0], sampled.log_probs.exp()
    for token in range(6):
        drawn = tokens == token
        if not drawn.any():
            continue
        probability = float(log_probs[drawn][0, 0])
        error = (probability * (1 - probability) / 4000) ** 0.5
        assert abs(float(drawn.float().mean()) - probability) < 4 * error
    entropy = policy.log_prob(obs, sampled.actions, sampled.replay).entropy
    expected = -sampled.log_probs.mean()
    assert entropy.mean().item() == pytest.approx(expected.item(), abs=0.05)


@every_policy
def test_imitated_answers_are_given(name):
    policy = make(name)
    obs, texts = chat_of("one", "two"), ["ab1", "2c"]
    actions = torch.zeros(2, ANSWER, dtype=torch.uint8)
    for row, text in zip(actions, texts, strict=True):
        row[: len(text)] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    rows = torch.arange(2).repeat(16)
    for step in range(150):
        loss = policy.imitation_loss(
            {key: x[rows] for key, x in obs.items()},
            actions[rows],
            torch.ones(32, 1, dtype=torch.bool),
            generator=generator(step),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    greedy = policy.sample(obs, deterministic=True, generator=generator())
    assert torch.equal(greedy.actions, actions)
    nothing = policy.imitation_loss(
        obs, actions, torch.zeros(2, 1, dtype=torch.bool), generator=generator()
    )
    assert nothing.item() == 0


@every_policy
def test_other_environments_and_options_are_refused(name):
    with pytest.raises(ValueError, match="needs an environment whose actions are texts"):
        make_policy(name, PolicySpec(obs_shapes={"state": (3,)}, obs_dtypes={"state": "float32"}))
    length = "answer_length" if name == "masked_diffusion" else "max_new_tokens"
    with pytest.raises(ValueError, match="does not fit the 12 bytes"):
        make(name, **{length: 13})
    with pytest.raises(ValueError, match="distinct ASCII"):
        make(name, alphabet="aa")
    policy, text = make(name), torch.full((1, ANSWER), ord("z"), dtype=torch.uint8)
    text[:, 4:] = 0
    with pytest.raises(ValueError, match="alphabet has no 'z'"):
        policy.imitation_loss(chat_of("x"), text, torch.ones(1, 1).bool(), generator=generator())


def test_tokens_and_texts_are_each_other():
    alphabet = Alphabet("abc12")
    tokens = torch.tensor([[1, 2, 0, 3], [5, 4, 3, 2]])
    text = alphabet.to_bytes(tokens, width=6)
    assert [bytes(row).rstrip(b"\0") for row in text.numpy()] == [b"ab", b"21cb"]
    assert alphabet.to_tokens(text, length=4).tolist() == [[1, 2, 0, 0], [5, 4, 3, 2]]
    prompts = read_prompts(OBS["chat"], length=12)
    assert bytes(prompts[4].tolist()) == b"twelve bytes" and prompts[0].tolist()[-3:] == [*b"one"]


def test_a_string_that_was_cut_says_so_and_which_tokens_are_digits():
    policy = make("string_generator", max_new_tokens=3)
    obs = {"chat": OBS["chat"][:1].expand(200, -1)}
    sampled = policy.sample(obs, generator=generator())
    for text, cut, numeric, count in zip(
        sampled.actions.numpy(),
        sampled.replay["unfinished"].tolist(),
        sampled.replay["numeric"].tolist(),
        sampled.unit_mask.sum(1).tolist(),
        strict=True,
    ):
        said = bytes(text).rstrip(b"\0").decode()
        assert cut == (len(said) == 3) and count == min(len(said) + 1, 3)
        assert numeric == [said[i : i + 1].isdigit() for i in range(3)]
    assert 0 < sampled.replay["unfinished"].sum() < 200


# ---- the likelihood of a masked-diffusion answer -------------------------------------------------

LENGTH = 8


def enumerated(policy: Any, tokens: Tensor, low: float, high: float) -> float:
    """Expectation over all 255 masks of the mean log-probability of what is masked."""
    q = (np.arange(20_000) + 0.5) / 20_000 * (high - low) + low
    by_size = [np.mean(q**k * (1 - q) ** (LENGTH - k)) for k in range(LENGTH + 1)]
    masks = torch.tensor(list(itertools.product([False, True], repeat=LENGTH)))[1:]
    canvas = torch.where(masks, policy.masked, tokens)
    prompts = read_prompts(OBS["chat"][:1], length=12).expand(len(masks), -1)
    with torch.no_grad():
        p = torch.distributions.Categorical(logits=policy.logits(prompts, canvas))
        scores = p.log_prob(tokens.expand(len(masks), -1))
    total = 0.0
    for mask, score in zip(masks, scores, strict=True):
        size = int(mask.sum())
        chance = by_size[size] + (by_size[0] / LENGTH if size == 1 else 0.0)
        total += float(chance) * float(score[mask].mean())
    return total


def estimates(policy: Any, tokens: Tensor, masks: Tensor) -> Tensor:
    obs = {"chat": OBS["chat"][:1].expand(len(masks), -1)}
    replay = {"tokens": tokens.expand(len(masks), -1), "masks": masks}
    with torch.no_grad():
        return policy.log_prob(obs, torch.empty(0), replay).log_probs


def masks_of(policy: Any, *, seed: int, rows: int = 2000) -> Tensor:
    obs = {"chat": OBS["chat"][:1].expand(rows, -1)}
    return policy.sample(obs, generator=generator(seed)).replay["masks"]


def bias(found: Tensor, exact: float) -> float:
    """Difference of the mean of [R, M] estimates in standard errors."""
    rows = found.mean(1)
    return float(rows.mean() - exact) / float(rows.std() / len(rows) ** 0.5)


@pytest.fixture(scope="module")
def copycat() -> Any:
    """A policy that has learned answers of one character: whatever is seen tells the rest."""
    policy = make("masked_diffusion", answer_length=LENGTH, num_steps=1)
    texts = policy.alphabet.bytes[1:].repeat(8).unsqueeze(1).expand(-1, LENGTH)
    obs = {"chat": OBS["chat"][:1].expand(len(texts), -1)}
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    for step in range(60):
        loss = policy.imitation_loss(
            obs, texts, torch.ones(len(texts)).bool(), generator=generator(step)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.9), (0.5, 0.5), (0.0, 0.2)])
def test_the_estimated_log_ratio_is_that_of_all_masks_enumerated(copycat, low, high):
    old, new = copy.deepcopy(copycat), copy.deepcopy(copycat)
    with torch.no_grad():  # an update later
        for parameter in new.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator(7)))
    old.mask_ratio, tokens = (low, high), torch.tensor([1, 1, 1, 5, 1, 1, 4, 1])
    exact = [enumerated(policy, tokens, low, high) for policy in (old, new)]
    masks = masks_of(old, seed=3)
    assert masks.any(-1).all()
    found = [estimates(policy, tokens, masks) for policy in (old, new)]
    assert abs(bias(found[0], exact[0])) < 2 and abs(bias(found[1], exact[1])) < 2
    ratio = found[1] - found[0]
    assert abs(bias(ratio, exact[1] - exact[0])) < 2
    # another distribution of masks has another expectation, which these samples would show
    other = enumerated(old, tokens, 0.8, 1.0)
    assert abs(bias(found[0], other)) > 5
    # the same masks for both: what they share falls out of the ratio
    independent = estimates(new, tokens, masks_of(old, seed=4)) - found[0]
    assert ratio.var() < independent.var()


def test_all_tokens_masked_is_the_mean_of_their_log_probabilities():
    policy = make("masked_diffusion", mask_ratio=(1.0, 1.0), num_masks=2)
    sampled = policy.sample(OBS, generator=generator())
    assert sampled.replay["masks"].all()
    prompts = read_prompts(OBS["chat"], length=12)
    canvas = torch.full((6, 8), policy.masked)
    p = torch.distributions.Categorical(logits=policy.logits(prompts, canvas))
    expected = p.log_prob(sampled.replay["tokens"]).mean(1)
    torch.testing.assert_close(sampled.log_probs, expected.unsqueeze(1).expand(-1, 2))


def test_the_question_and_the_rest_of_the_answer_are_seen_and_masked_tokens_are_not():
    policy = make("masked_diffusion", num_masks=1)
    tokens, masks = torch.tensor([[1, 2, 3, 4, 5, 1, 2, 3]]), torch.zeros(1, 1, 8).bool()
    masks[..., :3] = True

    def scored(text: str, answer: Tensor) -> Tensor:
        replay = {"tokens": answer, "masks": masks}
        with torch.no_grad():
            return policy.log_prob(chat_of(text), torch.empty(0), replay).log_probs

    first = scored("one", tokens)
    assert not torch.allclose(first, scored("two", tokens))
    seen, hidden = tokens.clone(), tokens.clone()
    seen[0, 7], hidden[0, 0] = 4, 2
    assert not torch.allclose(first, scored("one", seen))
    canvas = torch.where(masks[0], policy.masked, tokens)
    other = torch.where(masks[0], policy.masked, hidden)
    assert torch.equal(canvas, other)  # nothing of a masked token enters the network


def test_the_most_certain_places_are_filled_first(monkeypatch):
    policy, seen = make("masked_diffusion", num_steps=4), []

    def logits(prompts: Tensor, canvas: Tensor) -> Tensor:
        seen.append(canvas.clone())
        table = torch.zeros(len(canvas), LENGTH, policy.alphabet.size)
        table[..., 1] = torch.tensor([5.0, 1.0, 7.0, 3.0, 8.0, 2.0, 6.0, 4.0])  # for a
        return table

    monkeypatch.setattr(policy, "logits", logits)
    output = policy.sample(OBS, deterministic=True, generator=generator())
    filled = [(canvas[0] != policy.masked).nonzero().flatten().tolist() for canvas in seen]
    assert filled == [[], [2, 4], [0, 2, 4, 6], [0, 2, 3, 4, 6, 7]]
    assert bytes(output.actions[0].numpy()).rstrip(b"\0") == b"a" * LENGTH


def test_steps_see_what_earlier_ones_wrote(copycat):
    policy, obs = copy.deepcopy(copycat), {"chat": OBS["chat"][:1].expand(100, -1)}
    alike = {}
    for steps in (1, LENGTH):
        policy.num_steps = steps
        tokens = policy.sample(obs, generator=generator()).replay["tokens"]
        alike[steps] = (tokens == tokens[:, :1]).all(1).float().mean().item()
    assert alike[1] < 0.1 and alike[LENGTH] > 0.6, alike


# ---- with the rest of the library ----------------------------------------------------------------


def questions(folder: Path) -> str:
    """Forty sums whose answer is one character."""
    path = folder / "sums.jsonl"
    rows = [
        {"prompt": f"{a}+{b}=", "answer": "abcdefg"[a + b], "task": "sums"}
        for a, b in itertools.product(range(3), range(4))
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows * 4))
    return str(path)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("masked_diffusion", {"answer_length": 2}),
        ("string_generator", {"max_new_tokens": 2}),
    ],
)
def test_imitation_and_grpo_train_them_from_a_file_of_questions(tmp_path, name, options):
    config = TrainConfig(
        name="sums",
        env=EnvConfig(
            simulator=component("envs", "vqa", file=questions(tmp_path), heldout_share=0.2),
            num_envs=32,
            group_size=8,
        ),
        policy=component("policies", name, alphabet="abcdefg", **SMALL[name], **options),
        algorithm=component("algorithms", "grpo", learning_rate=3e-3, num_epochs=2, kl_coef=0.01),
        advantage=component("advantages", "group_relative"),
        imitation=ImitationConfig(episodes_per_task=32, num_steps=40, learning_rate=1e-2),
        total_env_steps=96,
        evaluation=EvalConfig(episodes=12, modes=("greedy",)),
        runs=str(tmp_path),
    )
    folder = train(config)
    lines = read_jsonl(folder / "metrics.jsonl")
    assert lines[-1]["time/env_steps"] == 96
    assert abs(lines[0]["train/ratio_mean"] - 1) < 0.5 and "train/kl_ref" in lines[-1]


def test_a_value_head_finds_the_mean_reward_of_each_prompt():
    policy = make("string_generator", critic="trunk", max_new_tokens=2)
    obs = chat_of(*["one", "two"] * 32)
    update = PPO(policy, PPO.Config(critic_learning_rate=1e-2, learning_rate=1e-3, num_epochs=1))
    paid = torch.tensor([0.8, -0.4]).repeat(32)
    for step in range(80):
        sampled = policy.sample(obs, generator=generator(step))
        noise = torch.randn(64, generator=generator(1000 + step))
        rollout = rollout_of(obs, sampled, paid + 0.3 * noise)
        update.update(rollout, gae(rollout), generator=generator(step))
    values = policy.value(chat_of("one", "two"))
    assert values.tolist() == pytest.approx([0.8, -0.4], abs=0.12)


def rollout_of(obs: TensorDict, sampled: Any, rewards: Tensor) -> Rollout:
    rows = len(rewards)
    yes, ids = torch.ones(1, rows, dtype=torch.bool), torch.arange(rows).unsqueeze(0)
    return Rollout(
        obs={"chat": obs["chat"].unsqueeze(0)},
        actions=sampled.actions.unsqueeze(0),
        log_probs=sampled.log_probs.unsqueeze(0),
        unit_mask=sampled.unit_mask.unsqueeze(0),
        values=sampled.values.unsqueeze(0),
        next_values=torch.zeros(1, rows),
        rewards=rewards.unsqueeze(0),
        terminated=yes,
        truncated=~yes,
        success=~yes,
        valid=yes,
        num_env_steps=ids,
        group_ids=ids,
        task_ids=torch.zeros_like(ids),
        episode_ids=ids,
        policy_version=torch.zeros_like(ids),
        replay={name: value.unsqueeze(0) for name, value in sampled.replay.items()},
    )


@every_policy
def test_a_copy_and_the_state_dict_carry_the_whole_policy(name):
    policy = make(name)
    sampled = policy.sample(OBS, generator=generator())
    for other in (copy.deepcopy(policy), make(name, seed=5)):
        other.load_state_dict(policy.state_dict())
        scored = other.log_prob(OBS, sampled.actions, sampled.replay)
        torch.testing.assert_close(scored.log_probs, sampled.log_probs, atol=2e-5, rtol=1e-5)
    assert GRPO(policy, GRPO.Config(kl_coef=0.1)).reference is not policy
