"""Log-probabilities in bounded memory against the whole logits at once, gradients included."""

import pytest
import torch

from embodied_rl.policies.vlm import scoring
from embodied_rl.policies.vlm.scoring import Head, token_log_probs

POSITIONS, FEATURES, WORDS = 23, 8, 37


def inputs(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, FEATURES, generator=g, dtype=torch.float64)
    weight = torch.randn(WORDS, FEATURES, generator=g, dtype=torch.float64)
    tokens = torch.randint(WORDS, (POSITIONS,), generator=g)
    by = torch.randn(2, POSITIONS, generator=g)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), tokens, by


def whole(hidden, weight, tokens, temperature, cap):
    """All logits at once, through torch's own distribution."""
    logits = hidden @ weight.T
    if cap:
        logits = cap * torch.tanh(logits / cap)
    p = torch.distributions.Categorical(logits=logits / temperature)
    return p.log_prob(tokens), p.entropy()


@pytest.mark.parametrize("at_once", [1, 3 * WORDS, 10**6])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("cap", [0.0, 2.5])
@pytest.mark.parametrize("wanted", ["log_probs", "entropy", "both"])
def test_chunks_give_what_the_whole_logits_give(at_once, temperature, cap, wanted):
    hidden, weight, tokens, by = inputs()
    by = by * torch.tensor([wanted != "entropy", wanted != "log_probs"]).unsqueeze(1)
    expected = whole(hidden, weight, tokens, temperature, cap)
    found = token_log_probs(hidden, tokens, Head(weight, temperature, cap), logits_at_once=at_once)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
    gradients = []
    for outputs in (found, expected):
        picked = [(o * b).sum() for o, b in zip(outputs, by, strict=True) if b.any()]
        gradients.append(torch.autograd.grad(torch.stack(picked).sum(), (hidden, weight)))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_logits_never_exceed_the_bound(monkeypatch):
    hidden, weight, tokens, _ = inputs(torch.float32)
    sizes = []
    plain = Head.logits

    def counted(self, states):
        sizes.append(len(states) * WORDS)
        return plain(self, states)

    monkeypatch.setattr(Head, "logits", counted)
    log_probs, _ = token_log_probs(hidden, tokens, Head(weight), logits_at_once=5 * WORDS)
    log_probs.sum().backward()
    assert max(sizes) == 5 * WORDS and sum(sizes) == 2 * POSITIONS * WORDS
    assert scoring.LOGITS_AT_ONCE <= 2**24


@pytest.mark.parametrize(("at_once", "times"), [(POSITIONS * WORDS, 1), (POSITIONS * WORDS - 1, 2)])
def test_logits_of_a_single_chunk_are_computed_once(monkeypatch, at_once, times):
    hidden, weight, tokens, _ = inputs(torch.float32)
    states, plain = [], Head.logits
    monkeypatch.setattr(
        Head, "logits", lambda self, part: states.append(len(part)) or plain(self, part)
    )
    token_log_probs(hidden, tokens, Head(weight), logits_at_once=at_once)[0].sum().backward()
    assert sum(states) == times * POSITIONS


def test_a_frozen_output_layer_gets_no_gradient():
    hidden, weight, tokens, _ = inputs(torch.float32)
    weight = weight.detach()
    token_log_probs(hidden, tokens, Head(weight))[0].sum().backward()
    assert hidden.grad is not None and weight.grad is None


@pytest.mark.parametrize("words_at_once", [1, 5, WORDS])
def test_bfloat16_states_give_logits_that_are_not_rounded(monkeypatch, words_at_once):
    monkeypatch.setattr(scoring, "WEIGHTS_AT_ONCE", words_at_once * FEATURES)
    hidden, weight, tokens, _ = inputs(torch.bfloat16)
    log_probs, entropy = token_log_probs(hidden, tokens, Head(weight))
    assert log_probs.dtype == entropy.dtype == torch.float32
    expected = whole(hidden.double(), weight.double(), tokens, 1.0, 0.0)
    for found, wanted in zip((log_probs, entropy), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    log_probs.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
