"""Generation by an engine that follows the policy, with engines made for the purpose."""

import copy
import dataclasses
import importlib.util
from typing import Any

import pytest
import torch
from conversations import disturb, generator, make, mixed, no_actions

from embodied_rl import rollout as rollouts
from embodied_rl.advantages.group_relative import group_relative
from embodied_rl.algorithms.grpo import GRPO
from embodied_rl.policies.vlm import text
from embodied_rl.policies.vlm.adapters import merged_weights
from embodied_rl.policies.vlm.backends import FollowingEngine
from embodied_rl.policies.vlm.generation import Answers

WORDS = [[70, 71, 513], [72], [73, 74, 75, 76, 77], [78, 513], [79, 80], [81, 82, 83]]


class Twin:
    """A second model without adapters, in the role of an engine."""

    def __init__(self, kind="qwen2_5_vl", *, shift=0.0, **options):
        self.policy = make(kind, seed=99, **options)
        self.shift, self.pushes, self.seeds, self.asked = shift, [], [], []

    def update(self, weights):
        given = dict(weights)
        self.policy.model.load_state_dict(given)
        self.pushes.append(sorted(given))

    def generate(self, obs, sampling, *, seeds):
        self.seeds.append(seeds)
        self.asked.append((sampling, len(obs["chat"])))
        self.policy.max_new_tokens = sampling.max_new_tokens
        if sampling.greedy:
            return self._greedy(obs)
        output = self.policy.sample(obs, generator=generator(int(seeds[0])))
        return Answers(
            tokens=output.replay["tokens"],
            lengths=output.replay["num_tokens"],
            log_probs=output.log_probs + self.shift,
        )

    def _greedy(self, obs):
        self.policy.top_k = 1
        output = self.policy.sample(obs, generator=generator())
        self.policy.top_k = 0
        return Answers(
            tokens=output.replay["tokens"],
            lengths=output.replay["num_tokens"],
            log_probs=output.log_probs,
        )


class Script:
    """Says ``WORDS`` with the log-probabilities of ``policy``, moved by ``shift``."""

    def __init__(self, policy, shift):
        self.policy, self.shift, self.pushes = policy, shift, 0

    def update(self, weights):
        self.pushes += 1
        list(weights)

    def generate(self, obs, sampling, *, seeds):
        rows = len(obs["chat"])
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(w) for w in WORDS[:rows]], True)
        lengths = torch.tensor([len(w) for w in WORDS[:rows]])
        replay = {"tokens": tokens, "num_tokens": lengths}
        with torch.no_grad():
            scored = self.policy.log_prob(obs, no_actions(rows), replay)
        return Answers(tokens=tokens, lengths=lengths, log_probs=scored.log_probs + self.shift)


def following(policy, engine, *, tolerance=0.05):
    policy.engine = FollowingEngine(lambda _: engine, name="twin", tolerance=tolerance)
    return policy


@pytest.mark.parametrize("options", [{}, {"lora_rank": 4, "lora_alpha": 8}])
def test_an_engine_samples_what_the_policy_scores(options):
    policy = disturb(make(critic="trunk", temperature=0.7, **options))
    twin = Twin(temperature=0.7)
    following(policy, twin, tolerance=1e-4)
    obs = mixed(copies=2)
    output = policy.sample(obs, generator=generator())
    scored = policy.log_prob(obs, output.actions, output.replay)
    kept = output.replay["backend_log_probs"]
    torch.testing.assert_close(output.log_probs, scored.log_probs)
    torch.testing.assert_close(output.values, scored.values)
    torch.testing.assert_close(kept, output.log_probs, atol=5e-5, rtol=1e-4)
    assert output.log_probs.abs().max() > 1 and not torch.equal(kept, output.log_probs)
    assert twin.pushes == [sorted(twin.policy.model.state_dict())]


def test_the_model_itself_keeps_no_second_log_probs():
    output = make().sample(mixed(), generator=generator())
    assert "backend_log_probs" not in output.replay


@pytest.mark.parametrize("options", [{}, {"lora_rank": 4}])
def test_weights_are_pushed_once_per_update_and_not_otherwise(options):
    policy, obs = make(max_new_tokens=2, **options), mixed()
    engine = Twin(max_new_tokens=2)
    following(policy, engine)
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], fused=True)
    pushed = []
    for count in range(3):
        for deterministic in (False, True, False):
            output = policy.sample(obs, deterministic=deterministic, generator=generator())
        policy.value(obs)
        pushed.append(len(engine.pushes))
        policy.log_prob(obs, output.actions, output.replay).log_probs.sum().backward()
        for _ in range(count + 1):  # as many gradient steps as an update takes
            optimizer.step()
    assert pushed == [1, 2, 3]
    policy.sample(obs, generator=generator())
    policy.load_state_dict(make(max_new_tokens=2, seed=5, **options).state_dict())
    policy.sample(obs, generator=generator())
    assert len(engine.pushes) == 5


def test_greedy_answers_of_an_engine_follow_the_weights():
    policy, obs = make(), mixed()
    following(policy, Twin())
    for _ in range(2):
        disturb(policy)
        found = policy.sample(obs, deterministic=True, generator=None)
        engine, policy.engine = policy.engine, None
        own = policy.sample(obs, deterministic=True, generator=None)
        policy.engine = engine
        assert torch.equal(found.actions, own.actions) and found.log_probs is None


def test_an_engine_that_disagrees_is_refused_at_the_start():
    sentence = (
        r"twin and the policy disagree: .* of \d+ tokens differ by 0.1 nats on average \(at most "
        r"0.1\), more than policy.generation.parity_tolerance=0.05: raise it .* to transformers$"
    )
    for deterministic in (False, True):
        policy = following(make(max_new_tokens=2), Twin(shift=0.1, max_new_tokens=2))
        with pytest.raises(ValueError, match=sentence):
            policy.sample(mixed(), deterministic=deterministic, generator=generator())
    policy = make()
    with pytest.raises(ValueError, match="differ by nan nats"):
        following(policy, Script(copy.deepcopy(policy), float("nan"))).sample(
            mixed(), generator=generator()
        )
    engine = Twin(shift=0.1, max_new_tokens=2)
    policy = following(make(max_new_tokens=2), engine, tolerance=0.2)
    policy.sample(mixed(copies=4), generator=generator())
    assert [rows for _, rows in engine.asked] == [8, 12]


def test_the_check_at_the_start_changes_no_answer():
    answers = []
    for tolerance in (0.05, 0.5):
        policy = following(make(), Twin(), tolerance=tolerance)
        draws = generator()
        first = policy.sample(mixed(), generator=draws)
        answers.append((first.replay["tokens"], torch.rand(2, generator=draws)))
        assert len(policy.engine.engine.asked) == 2
        policy.sample(mixed(), generator=draws)
        assert len(policy.engine.engine.asked) == 3
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


def test_what_an_engine_said_is_what_is_recorded():
    policy, obs = make(critic="trunk"), mixed(copies=2)
    following(policy, Script(copy.deepcopy(policy), -0.5), tolerance=1.0)
    output = policy.sample(obs, generator=generator())
    lengths = [len(words) for words in WORDS]
    assert output.replay["num_tokens"].tolist() == lengths == output.unit_mask.sum(1).tolist()
    assert output.replay["tokens"][2].tolist() == WORDS[2]
    assert text.from_bytes(output.actions)[0] == policy.tokenizer.decode([70, 71])
    difference = (output.log_probs - output.replay["backend_log_probs"])[output.unit_mask]
    torch.testing.assert_close(difference, torch.full_like(difference, 0.5))
    assert output.values.abs().min() > 0


def test_seeds_come_from_the_generator_and_differ_between_rows():
    policy, engine = make(max_new_tokens=2), Twin(max_new_tokens=2)
    following(policy, engine)
    for seed in (1, 1, 2):
        policy.sample(mixed(copies=2), generator=generator(seed))
    first, again, other = engine.seeds[1:]
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.unique().numel() == 6 and first.dtype == torch.int64 and int(first.min()) >= 0


def test_a_copy_of_a_policy_starts_an_engine_of_its_own():
    policy, started = make(max_new_tokens=2), []

    def start(policy):
        started.append(policy)
        return Twin(max_new_tokens=2)

    policy.engine = FollowingEngine(start, name="twin", tolerance=0.05)
    policy.sample(mixed(), generator=generator())
    twin = copy.deepcopy(policy)
    twin.sample(mixed(), generator=generator())
    assert started == [policy, twin] and twin.engine.engine is not policy.engine.engine
    assert policy.state_dict().keys() == make().state_dict().keys()


def test_vllm_is_named_with_its_make_target_where_it_is_missing(monkeypatch):
    from embodied_rl.policies.vlm.backends import Generation

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "vllm" else found(name, *a)
    )
    with pytest.raises(ValueError, match=r"not installed here: run `make vllm-env`"):
        make(generation=Generation(backend="vllm"))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("smolvlm", {}),
        ("internvl", {"lora_rank": 2}),
        ("smolvlm", {"bare": 1}),
        ("llava", {"lora_rank": 2}),
    ],
)
def test_a_decoder_by_itself_is_that_of_the_policy(kind, options, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    from embodied_rl.policies.vlm import model as models
    from embodied_rl.policies.vlm.vllm_backend import DECODERS, of_decoder, save_decoder

    policy = make(kind, **{name: value for name, value in options.items() if name != "bare"})
    if "bare" in options:  # an output layer of its own
        head = torch.nn.Parameter(policy.model.get_output_embeddings().weight.detach().clone())
        policy.model.get_output_embeddings().weight = head
    disturb(policy)
    architecture = DECODERS[policy.model.config.get_text_config().model_type]
    save_decoder(policy.model, policy.tokenizer, tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    alone = AutoModelForCausalLM.from_config(config)
    assert config.architectures == [type(alone).__name__] == [architecture]
    alone.load_state_dict(dict(of_decoder(policy.model, merged_weights(policy.model))))
    obs = {name: value[:1] for name, value in mixed().items()}  # with an image
    output = policy.sample(obs, generator=generator())
    tokens = output.replay["tokens"]
    prompt = models.decoder_inputs(policy.model, policy.reader(obs)).embeddings
    answer = alone.get_input_embeddings()(tokens[:, :-1])
    logits = alone(inputs_embeds=torch.cat([prompt, answer], 1)).logits[:, prompt.shape[1] - 1 :]
    found = logits.log_softmax(2).gather(2, tokens.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(found, output.log_probs, atol=2e-5, rtol=1e-5)


def test_answers_that_would_be_cut_are_refused():
    from embodied_rl.policies.vlm.vllm_backend import require_room

    prompts = make().reader(mixed())
    longest = int(prompts.mask.sum(1).max())
    require_room(prompts, 9, context=longest + 9)
    with pytest.raises(ValueError, match=rf"need room for {longest + 9} tokens, .* for 40: raise"):
        require_room(prompts, 9, context=40)


class Questions:
    """One question of a group of six, answered with anything; the reward is the row's number."""

    num_envs, device = 6, torch.device("cpu")
    group_ids = torch.zeros(6, dtype=torch.int64)
    task_ids = torch.zeros(6, dtype=torch.int64)

    def __init__(self):
        self.obs = {name: value[:1].repeat_interleave(6, 0) for name, value in mixed().items()}

    def reset(self, *, seed=None, options=None):
        return self.obs, {}

    def send(self, actions):
        pass

    def recv(self):
        yes = torch.ones(6, dtype=torch.bool)
        reward = torch.tensor([0.0, 1.0, 0.0, 2.0, 1.0, 0.5])
        info = {"success": yes, "valid": yes, "num_env_steps": yes.long(), "_episode": yes}
        info |= {"unit_mask": yes.unsqueeze(1), "episode": {"return": reward}}
        return self.obs, reward, yes, ~yes, info


def gradients(*, shift, clip, scale=1.0, weights=None):
    """Gradient and statistics of one update on scripted answers; advantages times ``scale``."""
    policy = make()
    if shift is not None:
        following(policy, Script(copy.deepcopy(policy), shift), tolerance=9.0)
    env: Any = Questions()
    rollout = rollouts.collect(env, policy, rollouts.start(env), generator=generator())
    if weights is not None:
        rollout = dataclasses.replace(rollout, replay={**rollout.replay})
        rollout.replay["backend_log_probs"] = rollout.log_probs - weights.log()
    advantages = group_relative(rollout)
    advantages = dataclasses.replace(advantages, advantages=scale * advantages.advantages)
    config = GRPO.Config(num_epochs=1, num_minibatches=1, max_grad_norm=1e9, mismatch_clip=clip)
    algorithm = GRPO(policy, config)
    stats = algorithm.update(rollout, advantages, generator=generator())
    return torch.cat([p.grad.flatten() for p in algorithm.trained if p.grad is not None]), stats


def test_the_correction_weighs_every_token_by_its_truncated_ratio():
    plain, stats = gradients(shift=-0.5, clip=0.0)
    assert stats["mismatch_abs"] == pytest.approx(0.5, abs=1e-5) and "ratio_max" in stats
    for shift, clip, scale, truncated in (
        (-0.5, 9.0, 1.6487213, 0.0),  # e^0.5
        (-0.5, 1.25, 1.25, 1.0),
        (0.6931472, 2.0, 0.5, 0.0),
        (0.0, 1.0, 1.0, None),
    ):
        found, stats = gradients(shift=shift, clip=clip)
        expected, _ = gradients(shift=shift, clip=0.0, scale=scale)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        if truncated is not None:
            assert stats["mismatch_truncated"] == truncated
    assert plain.abs().max() > 1e-3


def test_tokens_are_weighed_one_by_one():
    sizes = torch.zeros(1, 6, 5)
    sizes[0, 1, :1] = 1.5  # the one token of the second answer, all others are given weight 0
    weights = sizes.clamp(min=1e-8)
    found, _ = gradients(shift=0.0, clip=4.0, weights=weights)
    weights[0, 1, :1] = 3.0
    double, _ = gradients(shift=0.0, clip=4.0, weights=weights)
    assert found.abs().max() > 1e-5
    torch.testing.assert_close(double, 2 * found, rtol=1e-4, atol=1e-7)


def test_a_correction_without_an_engine_is_refused():
    with pytest.raises(ValueError, match=r"mismatch_clip .* to 0"):
        gradients(shift=None, clip=2.0)
    with pytest.raises(ValueError, match=r"mismatch_clip is 0.5; use 1 or more"):
        gradients(shift=0.0, clip=0.5)
