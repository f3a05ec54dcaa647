"""vLLM against the policy's own model; run by ``make vllm``, in its own environment."""

import shutil
from pathlib import Path

import pytest
import torch
from conversations import KINDS, disturb, generator, make, mixed

pytest.importorskip("vllm", reason="vLLM is not installed; make vllm runs these tests")

from embodied_rl import checkpoint, cli
from embodied_rl.metrics import read_jsonl
from embodied_rl.policies.vlm import presets, text
from embodied_rl.policies.vlm.backends import Generation

VLLM = Generation(backend="vllm", parity_tolerance=1e-4, context=512)


def served(kind="qwen2_5_vl", **options):
    return make(kind, generation=VLLM, **({"max_new_tokens": 24} | options))


def own(policy, obs, **options):
    """What the policy's own model answers."""
    engine, policy.engine = policy.engine, None
    try:
        return policy.sample(obs, **options)
    finally:
        policy.engine = engine


def greedy(policy, obs, *, alone=False):
    sample = own if alone else type(policy).sample
    return text.from_bytes(sample(policy, obs, deterministic=True, generator=None).actions)


def off_by(output):
    difference = (output.log_probs - output.replay["backend_log_probs"]).abs()
    return float(difference[output.unit_mask].max())


def with_text(monkeypatch, kind, **options):
    """The name of a model of one type with another text part."""
    original = presets.PRESETS[kind]

    def preset():
        own, processor = original()
        return {**own, "model_type": kind, "text_config": options}, processor

    monkeypatch.setitem(presets.PRESETS, "other", preset)
    return "other"


@pytest.mark.parametrize("kind", KINDS)
def test_answers_follow_the_weights_and_are_those_of_transformers(kind):
    policy, obs = served(kind), mixed(copies=2)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    before = greedy(policy, obs)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert before == greedy(policy, obs, alone=True)
    for _ in range(2):
        disturb(policy)
        after = greedy(policy, obs)
        assert after == greedy(policy, obs, alone=True)
        assert before != after
        assert off_by(policy.sample(obs, generator=generator())) < 2e-5
        before = after


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("internvl", {"model_type": "qwen3", "head_dim": 32}),
        ("llava", {"model_type": "mistral", "sliding_window": 16}),
    ],
)
def test_other_text_parts(kind, options, monkeypatch):
    policy, obs = served(with_text(monkeypatch, kind, **options)), mixed()
    assert greedy(policy, obs) == greedy(policy, obs, alone=True)
    assert off_by(disturb(policy).sample(obs, generator=generator())) < 2e-5


def test_a_text_part_that_was_never_tried_is_refused_at_start(monkeypatch):
    name = with_text(monkeypatch, "llava", model_type="olmo2")
    with pytest.raises(ValueError, match=r"never tried with a llava whose text part is olmo2.*set"):
        served(name)


def test_images_are_seen_with_the_present_weights():
    policy, obs = served(), mixed()
    before = greedy(policy, obs)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "visual" in name:
                weight.mul_(-3.0)
    after = greedy(policy, obs)
    assert after == greedy(policy, obs, alone=True)
    assert after[2] == before[2] and after[0] != before[0]  # the last question has no image


@pytest.mark.parametrize("kind", ["smolvlm", "qwen3_vl", "gemma3", "paligemma"])
def test_sampling_options_mean_the_same(kind):
    options = {"temperature": 0.7, "stop": ("e", "🌳"), "max_new_tokens": 40, "lora_rank": 4}
    policy, obs = disturb(served(kind, **options)), mixed(copies=8)
    first, second, other = (policy.sample(obs, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(first.actions, second.actions)
    assert not torch.equal(first.actions, other.actions)
    assert off_by(first) < 2e-5
    lengths, stopped = first.replay["num_tokens"].tolist(), 0
    for tokens, length in zip(first.replay["tokens"], lengths, strict=True):
        before, answer = (
            policy.tokenizer.decode(tokens[:end], skip_special_tokens=True)
            for end in (length - 1, length)
        )
        stopped += "e" in answer
        assert "e" not in before
        assert "e" in answer or length == 40 or tokens[length - 1] == policy.tokenizer.eos_token_id
    assert stopped


def test_narrowed_likelihoods_are_over_all_words():
    policy, obs = served("smolvlm", top_k=2), mixed(copies=2)
    assert off_by(policy.sample(obs, generator=generator())) < 2e-5
    best = greedy(policy, obs)
    for policy.top_k, policy.top_p in ((1, 1.0), (0, 1e-6)):
        assert text.from_bytes(policy.sample(obs, generator=generator()).actions) == best
    policy.top_k, policy.top_p = 5, 0.9
    assert off_by(policy.sample(obs, generator=generator())) < 2e-5
    with pytest.raises(ValueError, match=r"set policy.temperature to 1, or policy.top_k to 0"):
        served("smolvlm", top_k=2, temperature=0.5)


@pytest.mark.parametrize("kind", ["qwen3_vl", "paligemma"])
def test_answers_may_end_at_once(kind):
    policy, obs = served(kind), mixed(copies=2)
    policy.model.generation_config.eos_token_id = list(range(len(policy.tokenizer)))
    output = policy.sample(obs, generator=generator())
    assert output.replay["num_tokens"].tolist() == [1] * 6
    assert not output.replay["unfinished"].any() and off_by(output) < 2e-5
    assert greedy(policy, obs) == greedy(policy, obs, alone=True)


def test_a_run_from_the_command_line_goes_on_where_it_stopped(tmp_path, capsys):
    changes = {
        "runs": tmp_path,
        "imitation.episodes-per-task": 200,
        "imitation.num-steps": 60,
        "env.num-envs": 32,
        "total-env-steps": 128,
        "checkpoint.every": 1,
        "checkpoint.keep-last": 9,
        "algorithm.mismatch-clip": 2,
        "policy.generation.backend": "vllm",
        "policy.generation.context": 512,
        "evaluation.episodes": 4,
        "evaluation.modes": "greedy",
    }
    words = [str(word) for key, value in changes.items() for word in (f"--{key}", value)]
    assert cli.main(["train", "vqa/shapes_grpo", *words]) == 0
    whole = Path(capsys.readouterr().out.strip().splitlines()[-1])
    metrics = [line for line in read_jsonl(whole / "metrics.jsonl") if "iteration" in line]
    assert len(metrics) == 4 and all(line["train/mismatch_abs"] < 1e-4 for line in metrics)
    assert sum(line["train/num_gradient_steps"] for line in metrics) > 4
    broken = shutil.copytree(whole, tmp_path / "broken")
    for path in sorted((broken / "checkpoints").glob("step_*"))[2:]:
        shutil.rmtree(path)
    assert cli.main(["train", "--resume", str(broken)]) == 0
    ends = [sorted((run / "checkpoints").glob("step_*"))[-1] for run in (whole, broken)]
    assert ends[0].name == ends[1].name
    first, second = (checkpoint.load(path)["policy"] for path in ends)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
