"""Drawing tokens: the right distribution, options that narrow it, ends of answers."""

import itertools
from typing import Any

import pytest
import torch

from embodied_rl.policies.vlm.generation import generate, narrow, pick

WORDS = 7


def logits_of(rows, seed=0):
    return torch.randn(rows, WORDS, generator=torch.Generator().manual_seed(seed))


def test_words_come_as_often_as_their_probability():
    logits = logits_of(1).expand(20_000, -1)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(1))
    share = pick(logits, uniform).bincount(minlength=WORDS) / 20_000
    torch.testing.assert_close(share, logits[0].softmax(0), rtol=0, atol=0.01)


def test_a_word_without_probability_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, -1)
    uniform = torch.tensor([0.0, 0.5, 0.4999999, 0.99999994])
    assert pick(logits, uniform).tolist() == [1, 3, 1, 3]


@pytest.mark.parametrize(("options", "left"), [({"top_k": 3}, 3), ({"top_p": 1e-9}, 1)])
def test_words_that_are_left_keep_their_odds(options, left):
    log_p = logits_of(1).log_softmax(1).expand(20_000, -1)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(1))
    share = pick(log_p, uniform, **options).bincount(minlength=WORDS) / 20_000
    best = log_p[0].topk(left).indices
    assert float(share[best].sum()) == pytest.approx(1.0)
    odds = torch.distributions.Categorical(logits=log_p[0, best]).probs
    torch.testing.assert_close(share[best], odds, rtol=0, atol=0.01)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_is_probable_enough(top_p):
    logits = logits_of(12)
    for row, kept in zip(logits.softmax(1), narrow(logits, top_p=top_p).isfinite(), strict=True):
        sets = itertools.chain.from_iterable(
            itertools.combinations(range(WORDS), size) for size in range(1, WORDS + 1)
        )
        enough = [s for s in sets if float(row[list(s)].sum()) >= top_p]
        size = min(map(len, enough))
        best = max((s for s in enough if len(s) == size), key=lambda s: float(row[list(s)].sum()))
        assert kept.nonzero().squeeze(1).tolist() == list(best)


def test_top_k_keeps_the_most_probable_words_and_their_odds():
    logits = logits_of(5)
    kept = narrow(logits, top_k=3)
    assert kept.isfinite().sum(1).tolist() == [3] * 5
    for row, found in zip(logits, kept, strict=True):
        best = sorted(range(WORDS), key=lambda w: -float(row[w]))[:3]
        assert set(found.isfinite().nonzero().squeeze(1).tolist()) == set(best)
        assert torch.equal(found[best], row[best])


class Chain:
    """Logits that depend on the last token alone; counts the rows it is asked for."""

    def __init__(self, rows):
        self.table = logits_of(WORDS, seed=3)
        self.rows = torch.arange(rows)
        self.asked = []

    def __call__(self, tokens, keep):
        if keep is not None:
            self.rows = self.rows[keep]
        assert len(self.rows) == len(tokens)
        self.asked.append(len(tokens))
        return self.table[tokens]


def play(uniform, **options):
    chain = Chain(len(uniform))
    start = logits_of(1, seed=4).expand(len(uniform), -1)
    arguments: Any = {"end_tokens": [2]} | options
    return generate(start, chain, uniform, **arguments), chain


def noise(rows=16, length=12, seed=5):
    return torch.rand(rows, length, generator=torch.Generator().manual_seed(seed))


def test_a_row_is_the_same_alone_and_in_company():
    uniform = noise()
    together, chain = play(uniform)
    assert len(set(together.lengths.tolist())) > 3
    assert chain.asked[-1] < 16  # finished rows are no longer computed
    for n in range(16):
        alone, _ = play(uniform[n : n + 1])
        count = int(together.lengths[n])
        assert int(alone.lengths[0]) == count
        assert torch.equal(alone.tokens[0], together.tokens[n, :count])
        assert torch.equal(alone.log_probs[0], together.log_probs[n, :count])


def test_answers_end_with_their_end_token_or_at_the_limit():
    answers, _ = play(noise())
    for tokens, mask, log_probs in zip(
        answers.tokens, answers.mask, answers.log_probs, strict=True
    ):
        real = tokens[mask].tolist()
        assert 2 not in real[:-1]
        assert real[-1] == 2 or len(real) == 12
        assert not tokens[~mask].any() and not log_probs[~mask].any()


def test_recorded_log_probabilities_are_those_of_all_words():
    answers, chain = play(noise(), top_k=3, top_p=0.9)
    start = logits_of(1, seed=4)[0]
    for tokens, mask, log_probs in zip(
        answers.tokens, answers.mask, answers.log_probs, strict=True
    ):
        last = start
        for token, log_prob in zip(tokens[mask], log_probs[mask], strict=True):
            expected = torch.distributions.Categorical(logits=last).log_prob(token)
            torch.testing.assert_close(log_prob, expected)
            last = chain.table[token]


def test_what_stops_an_answer_is_asked_with_its_tokens_so_far():
    answers, _ = play(noise(), end_tokens=[], stopped=lambda tokens: sum(tokens) >= 20)
    for tokens, mask in zip(answers.tokens, answers.mask, strict=True):
        real = tokens[mask].tolist()
        assert sum(real[:-1]) < 20 and (sum(real) >= 20 or len(real) == 12)
