"""Attention of prompts and their answers, against one row of keys after the other in float64."""

import pytest
import torch
from conversations import generator, given_answers, make, mixed, no_actions

pytest.importorskip("transformers", reason="the extra vlm is not installed")

from embodied_rl.algorithms.grpo import GRPO
from embodied_rl.policies.vlm.packing import Decoding, Packing
from embodied_rl.types import Advantages, Rollout

HEADS, KEYS, FEATURES, SCALE = 4, 2, 8, 0.3
PROMPTS = torch.tensor([5, 2, 7])
ROWS = torch.tensor([2, 0, 2, 2, 0, 2])  # the second prompt has no answer
ANSWERS = torch.tensor([3, 6, 1, 4, 6, 2])
LAST = torch.arange(7) >= 7 - PROMPTS.unsqueeze(1)

windows = pytest.mark.parametrize("window", [None, 3])


def drawn(lengths=ANSWERS):
    count = int(PROMPTS.sum() + lengths.sum())
    shapes = [(1, heads, count, FEATURES) for heads in (HEADS, KEYS, KEYS)]
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g).requires_grad_() for shape in shapes]


def one_by_one(q, k, v, window, lengths=ANSWERS):
    """``[S, h, d]``, every query with the keys that it sees."""
    ends = torch.cat([PROMPTS, lengths]).cumsum(0).tolist()
    spans = [range(b - int(n), b) for b, n in zip(ends, [*PROMPTS, *lengths], strict=True)]
    outputs = {}
    for number, span in enumerate(spans):
        before = [] if number < len(PROMPTS) else list(spans[int(ROWS[number - len(PROMPTS)])])
        for place, token in enumerate(span):
            seen = [*before, *span[: place + 1]]
            seen = seen if window is None else seen[-window:]
            for head in range(HEADS):
                key = head * KEYS // HEADS
                p = torch.softmax(SCALE * (k[0, key, seen] @ q[0, head, token]), 0)
                outputs[token, head] = p @ v[0, key, seen]
    tokens = range(ends[-1])
    return torch.stack([torch.stack([outputs[t, h] for h in range(HEADS)]) for t in tokens])


@windows
@pytest.mark.parametrize("by_mask", [False, True])
@pytest.mark.parametrize(
    "lengths", [ANSWERS, torch.tensor([0, 6, 0, 1, 0, 2]), 0 * ANSWERS, 0 * ANSWERS + 4]
)
def test_answers_see_their_prompt_and_themselves_and_so_do_gradients(window, lengths, by_mask):
    q, k, v = drawn(lengths)
    layout = Packing(LAST, ROWS, lengths)
    if by_mask:
        found = layout.attend_by_mask(q, k, v, scale=SCALE, window=window)[0]
    else:
        found = layout.attend(0, q, k, v, scale=SCALE, window=window)[0]
    expected = one_by_one(q.double(), k.double(), v.double(), window, lengths)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
    by = torch.randn(expected.shape, generator=generator(), dtype=torch.float64)
    wanted = torch.autograd.grad((expected * by).sum(), (q, k, v))
    gradients = torch.autograd.grad((found.double() * by).sum(), (q, k, v))
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_blocks_of_prompts_are_seen_in_both_directions():
    q, k, v = drawn()
    blocks = torch.where(torch.arange(7) < 5, 0, -1) + 0 * PROMPTS.unsqueeze(1)
    by = torch.randn((1, q.shape[2], HEADS, FEATURES), generator=generator())
    found = {}
    for kind, given in (("none", None), ("some", blocks)):
        layout = Packing(LAST, ROWS, ANSWERS, blocks=given)
        spans = layout.attend(0, q, k, v, scale=SCALE, window=None)
        mask = layout.attend_by_mask(q, k, v, scale=SCALE, window=None)
        gradients = [torch.autograd.grad((out * by).sum(), (q, k, v)) for out in (spans, mask)]
        for a, b in zip((spans, *gradients[0]), (mask, *gradients[1]), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        found[kind] = spans[0]
    same = found["none"].isclose(found["some"], atol=1e-6).flatten(1).all(1)[: int(PROMPTS.sum())]
    # of five, two and seven tokens the first three, none and five are in a block; its last one sees
    # no more than it did
    assert same.tolist() == [False] * 2 + [True] * 3 + [True] * 2 + [False] * 4 + [True] * 3


def test_scores_that_would_overflow_stay_finite():
    q, k, v = drawn()
    layout = Packing(LAST, ROWS, ANSWERS)
    found = layout.attend(0, q * 1000, k, v, scale=1.0, window=None)
    gradients = torch.autograd.grad(found.sum(), (q, k, v))
    assert all(bool(x.isfinite().all()) for x in (found, *gradients))


@windows
@pytest.mark.parametrize(
    "prompts", [ROWS, torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([2, 0, 1, 0, 1, 2])]
)
@torch.no_grad()
def test_token_by_token_gives_what_the_whole_answer_gives(window, prompts):
    lengths = torch.full_like(ANSWERS, 6)
    q, k, v = drawn(lengths)
    keep = {}
    layout = Packing(LAST, prompts, lengths, keep=keep)
    whole = layout.attend(0, q, k, v, scale=SCALE, window=window)[0]
    decoding = Decoding(keep, LAST, prompts, room=6, step=2)
    rows = torch.arange(len(prompts))
    for place in range(6):
        if place in (2, 5):  # some answers are finished, and with them a prompt
            left = torch.tensor([0, 2, 3, 5]) if place == 2 else torch.tensor([1, 3])
            decoding.select(left)
            rows = rows[left]
        index = layout.answer_index[rows, place]
        token = (x[0].transpose(0, 1)[index].unsqueeze(2) for x in (q, k, v))
        found = decoding.attend(0, *token, scale=SCALE, window=window)[:, 0]
        decoding.advance()
        torch.testing.assert_close(found, whole[index], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_room_for_answers_is_made_as_they_grow_and_never_more_than_they_may_need():
    q, k, v = (torch.randn(2, heads, 1, FEATURES) for heads in (HEADS, KEYS, KEYS))
    prompt = torch.randn(2, KEYS, 3, FEATURES)
    decoding = Decoding(
        {0: (prompt, prompt)}, torch.ones(2, 3).bool(), torch.arange(2), room=5, step=2
    )
    rooms = []
    for _ in range(5):
        decoding.attend(0, q, k, v, scale=SCALE, window=None)
        decoding.advance()
        rooms.append(decoding.kept[0][1].shape[2])
    assert rooms == [2, 2, 4, 4, 5]


def test_a_shuffled_minibatch_has_the_scores_and_gradients_of_its_rows_alone():
    policy, obs, replay = make(), mixed(copies=2), given_answers()
    order = torch.tensor([4, 0, 5, 2, 1])  # two answers to two prompts, one to another
    weight = torch.randn(6, 9, generator=generator())

    def scored(rows):
        obs_rows = {name: value[rows] for name, value in obs.items()}
        replay_rows = {name: value[rows] for name, value in replay.items()}
        output = policy.log_prob(obs_rows, no_actions(len(rows)), replay_rows)
        policy.zero_grad()
        (weight[rows] * (output.log_probs + 0.1 * output.entropy)).sum().backward()
        gradients = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
        return output.log_probs.detach(), gradients

    together, gradients = scored(order)
    alone = [scored(order[n : n + 1]) for n in range(len(order))]
    torch.testing.assert_close(together, torch.cat([a for a, _ in alone]), atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        total = torch.stack([each[name] for _, each in alone if name in each]).sum(0)
        scale = float(total.abs().max())
        torch.testing.assert_close(gradient, total, atol=1e-4 * scale + 1e-7, rtol=1e-3)


def test_answers_to_one_prompt_are_those_it_gets_alone():
    policy, obs = make(max_new_tokens=8, seed=1), mixed(copies=3)
    together = policy.sample(obs, deterministic=True, generator=None).actions
    for n in range(9):
        row = {name: value[n : n + 1] for name, value in obs.items()}
        alone = policy.sample(row, deterministic=True, generator=None).actions
        assert torch.equal(alone[0], together[n])


def test_micro_batches_as_large_as_a_group_read_every_prompt_once():
    policy, obs = make(max_new_tokens=3), mixed(copies=4)
    output = policy.sample(obs, generator=generator())
    yes = torch.ones((1, 12), dtype=torch.bool)
    ids, zero = torch.arange(12).unsqueeze(0), torch.zeros((1, 12))
    rollout = Rollout(
        obs={name: value.unsqueeze(0) for name, value in obs.items()},
        actions=output.actions.unsqueeze(0),
        log_probs=output.log_probs.unsqueeze(0),
        unit_mask=output.unit_mask.unsqueeze(0),
        values=zero,
        next_values=zero,
        rewards=zero,
        terminated=yes,
        truncated=~yes,
        success=~yes,
        valid=yes,
        num_env_steps=ids,
        group_ids=ids // 4,
        task_ids=ids,
        episode_ids=ids,
        policy_version=0 * ids,
        replay={name: value.unsqueeze(0) for name, value in output.replay.items()},
    )
    read, reader = [], policy.reader

    def counting(part):
        prompts = reader(part)
        read.append(len(prompts.mask))
        return prompts

    policy.reader = counting
    config = GRPO.Config(num_epochs=1, num_minibatches=1, micro_batch_size=4)
    advantages = Advantages(advantages=torch.randn((1, 12), generator=generator()), keep=yes)
    GRPO(policy, config).update(rollout, advantages, generator=generator())
    assert read == [1, 1, 1]
