"""The laws of a policy, and the outputs of transformers' own models as the oracle."""

import copy

import pytest
import torch
from conversations import (
    BLUE,
    GREEN,
    KINDS,
    RED,
    SPEC,
    conversations,
    generator,
    given_answers,
    make,
    mixed,
    no_actions,
)

from embodied_rl import checkpoint
from embodied_rl.policies.vlm import text
from embodied_rl.policies.vlm.policy import TOKENS_AT_ONCE
from embodied_rl.policies.vlm.prompts import Prompts

every_kind = pytest.mark.parametrize("kind", KINDS)


def scored(policy, obs, replay):
    return policy.log_prob(obs, no_actions(len(replay["tokens"])), replay)


def rows_of(tree, pick):
    return {name: value[pick] for name, value in tree.items()}


def plain_model(policy):
    """The same weights in transformers' own model, with its own attention."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_config(
        copy.deepcopy(policy.model.config), attn_implementation="eager"
    )
    model.load_state_dict(policy.model.state_dict())
    return model


def plain_inputs(policy, obs, tokens):
    """One prompt and one answer as a row of token ids."""
    inputs = dict(policy.reader(obs).inputs)
    # those of type 0 see each other in both directions in PaliGemma
    ones = ["attention_mask"]
    ones += ["token_type_ids"] if policy.model.config.model_type == "paligemma" else []
    for name, value in inputs.items():
        if name == "input_ids":
            inputs[name] = torch.cat([value, tokens[None]], 1)
        elif name in ("attention_mask", "mm_token_type_ids", "token_type_ids"):
            after = torch.full_like(tokens[None], int(name in ones))
            inputs[name] = torch.cat([value, after], 1)
    return inputs


def plain_logits(policy, model, obs, replay, n):
    """Logits [L, V] from which the L tokens of answer n follow, and the tokens."""
    tokens = replay["tokens"][n, : replay["num_tokens"][n]]
    inputs = plain_inputs(policy, rows_of(obs, slice(n, n + 1)), tokens)
    start = inputs["input_ids"].shape[1] - len(tokens)
    return model(**inputs).logits[0, start - 1 : -1], tokens


@every_kind
def test_sampled_log_probs_are_those_of_scoring(kind):
    policy, obs = make(kind, critic="trunk", temperature=0.7), mixed(copies=2)
    sampled = policy.sample(obs, generator=generator())
    again = policy.log_prob(obs, sampled.actions, sampled.replay)
    torch.testing.assert_close(again.log_probs, sampled.log_probs, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(again.values, sampled.values, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(policy.value(obs), sampled.values, atol=2e-5, rtol=1e-5)
    assert torch.equal(sampled.unit_mask.sum(1), sampled.replay["num_tokens"])
    assert again.log_probs.requires_grad and not sampled.log_probs.requires_grad


@every_kind
def test_scores_and_gradients_are_those_of_the_plain_model(kind):
    policy, obs, replay = make(kind), mixed(copies=2), given_answers()
    model = plain_model(policy)
    found = scored(policy, obs, replay)
    weight = torch.linspace(-1, 1, found.log_probs.numel()).view(found.log_probs.shape)
    (weight * (found.log_probs + 0.3 * found.entropy)).sum().backward()
    for n in range(6):
        logits, tokens = plain_logits(policy, model, obs, replay, n)
        p = torch.distributions.Categorical(logits=logits)
        count = len(tokens)
        expected = torch.stack([p.log_prob(tokens), p.entropy()])
        result = torch.stack([found.log_probs[n, :count], found.entropy[n, :count]])
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
        assert not found.log_probs[n, count:].any() and not found.entropy[n, count:].any()
        (weight[n, :count] * (expected[0] + 0.3 * expected[1])).sum().backward()
    wanted = dict(model.named_parameters())
    for name, parameter in policy.model.named_parameters():
        other = wanted[name].grad
        if parameter.grad is None or other is None:
            assert parameter.grad is other is None, name
            continue
        scale = float(other.abs().max())
        torch.testing.assert_close(parameter.grad, other, atol=2e-4 * scale + 1e-7, rtol=1e-3)


@every_kind
def test_greedy_answers_are_those_of_transformers(kind):
    policy = make(kind, max_new_tokens=8, seed=1)
    obs = mixed()
    found = policy.sample(obs, deterministic=True, generator=None)
    assert found.log_probs is None and found.unit_mask is None
    model = plain_model(policy).eval()
    for n in range(3):
        inputs = policy.reader(rows_of(obs, slice(n, n + 1))).inputs
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        expected = policy.tokenizer.decode(new, skip_special_tokens=True)
        assert text.from_bytes(found.actions[n : n + 1]) == [expected.replace("\0", "")]


def test_equal_prompts_are_computed_once_and_padding_never(monkeypatch):
    policy, replay = make(), given_answers()
    obs = mixed(copies=2)
    seen = []
    decoder = policy.model.get_decoder()
    decoder.register_forward_hook(lambda m, a, out: seen.append(out.last_hidden_state.shape[:2]))
    scored(policy, obs, replay)
    prompts = policy.reader(mixed())
    # the last token of an answer is predicted and not read
    count = int(prompts.mask.sum()) + int((replay["num_tokens"] - 1).sum())
    assert seen == [(1, count)]
    seen.clear()
    policy.sample(obs, generator=generator())
    assert seen[0] == (1, int(prompts.mask.sum())) and seen[1] == (6, 1)


@every_kind
def test_scores_do_not_depend_on_the_other_rows_or_on_padding(kind):
    policy, obs, replay = make(kind), mixed(copies=2), given_answers()
    whole = scored(policy, obs, replay).log_probs
    pick = torch.tensor([4, 1])
    part = scored(policy, rows_of(obs, pick), rows_of(replay, pick)).log_probs
    torch.testing.assert_close(part, whole[pick], atol=2e-5, rtol=1e-5)
    longer = torch.cat([replay["tokens"], torch.full((6, 4), 77)], 1)
    filled = scored(policy, obs, replay | {"tokens": longer}).log_probs
    torch.testing.assert_close(filled[:, :9], whole, atol=2e-5, rtol=1e-5)
    assert not filled[:, 9:].any()


def test_same_generator_same_answers():
    policy, obs = make(), mixed(copies=2)
    first, second, other = (policy.sample(obs, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(first.actions, second.actions)
    assert torch.equal(first.log_probs, second.log_probs)
    assert not torch.equal(first.actions, other.actions)


@every_kind
def test_permuting_rows_and_noise_permutes_the_answers(kind, monkeypatch):
    policy, obs = make(kind), mixed(copies=2)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    plain = policy.sample(obs, generator=generator())
    draw = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *a, **options: draw(*a, **options)[order])
    moved = policy.sample(rows_of(obs, order), generator=generator())
    assert torch.equal(moved.actions, plain.actions[order])
    torch.testing.assert_close(moved.log_probs, plain.log_probs[order], atol=2e-5, rtol=1e-5)


def test_an_image_is_seen_and_its_frame_is_not():
    policy, replay = make(), given_answers(3)
    obs = conversations(("What colour?", [RED]), ("What colour?", [GREEN]), ("What colour?", [RED]))
    obs["image_sizes"][:, 0] = 28
    obs["images"][2, 0, 28:] = 99  # outside the image
    same = {name: value[:1].expand(3, -1) for name, value in replay.items() if value.ndim == 2}
    replay = {**same, "num_tokens": torch.full((3,), 9)}
    log_probs = scored(policy, obs, replay).log_probs
    assert torch.allclose(log_probs[0], log_probs[2], atol=1e-6)
    assert not torch.allclose(log_probs[0], log_probs[1], atol=1e-4)


def test_without_a_chat_template_a_prompt_is_images_then_text():
    policy = make("paligemma")
    obs = conversations(("What colour?", [RED]), ("Which one?", [RED, BLUE]), ("Yes or no?", []))
    inputs = policy.reader(obs).inputs
    mask = inputs["attention_mask"].bool()
    rows = [policy.tokenizer.decode(x[m]) for x, m in zip(inputs["input_ids"], mask, strict=True)]
    image = "<image>" * 4
    assert rows == [
        f"{image}<|bos|>What colour?\n",
        f"{image}{image}<|bos|>Which one?\n",
        "<|bos|>Yes or no?\n",
    ]
    assert not inputs["token_type_ids"][mask].any()


def test_stop_strings_end_an_answer_and_stay_in_it():
    policy = make(max_new_tokens=40, stop=("e", "🌳"))
    obs = mixed(copies=8)
    sampled = policy.sample(obs, generator=generator())
    answers = text.from_bytes(sampled.actions)
    lengths = sampled.replay["num_tokens"]
    assert any("e" in answer for answer in answers)
    for answer, tokens, length in zip(answers, sampled.replay["tokens"], lengths, strict=True):
        before = policy.tokenizer.decode(tokens[: length - 1], skip_special_tokens=True)
        assert "e" not in before
        assert "e" in answer or int(length) == 40 or tokens[length - 1] == 513


def test_narrowed_sampling_only_takes_likely_words():
    obs = mixed(copies=4)
    policy = make(top_k=2)
    sampled = policy.sample(obs, generator=generator())
    model = plain_model(policy)
    for n in (0, 5):
        if int(sampled.replay["tokens"][n].max()) >= 512:
            continue  # an image token would want an image
        logits, tokens = plain_logits(policy, model, obs, sampled.replay, n)
        best = logits.topk(2, 1).indices
        assert bool((best == tokens.unsqueeze(1)).any(1).all())
    policy.top_k, policy.top_p = 0, 1e-6
    narrow = policy.sample(obs, generator=generator())
    greedy = policy.sample(obs, deterministic=True, generator=None)
    assert torch.equal(narrow.actions, greedy.actions)


def test_imitation_is_the_cross_entropy_of_the_answers_alone():
    policy, obs = make(), mixed()
    answers = ["red", "the second one", "no"]
    actions = text.to_bytes(answers, width=SPEC.text_bytes)
    mask = torch.tensor([[True], [True], [False]])
    loss = policy.imitation_loss(obs, actions, mask, generator=None)
    model, terms = plain_model(policy), []
    for n in range(2):
        ids = [*policy.tokenizer.encode(answers[n]), policy.tokenizer.eos_token_id]
        inputs = plain_inputs(policy, rows_of(obs, slice(n, n + 1)), torch.tensor(ids))
        labels = inputs["input_ids"].clone()
        labels[:, : -len(ids)] = -100
        terms.append((model(**inputs, labels=labels).loss, len(ids)))
    expected = sum(value * count for value, count in terms) / sum(c for _, c in terms)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


def test_checkpointed_layers_give_the_same_gradients():
    gradients = []
    for saving in (False, True):
        policy = make(gradient_checkpointing=saving)
        output = scored(policy, mixed(copies=2), given_answers())
        output.log_probs.sum().backward()
        gradients.append([p.grad for p in policy.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_bfloat16_weights_give_float32_log_probs_that_agree_within_rounding():
    policy, obs = make(dtype="bfloat16"), mixed(copies=2)
    sampled = policy.sample(obs, generator=generator())
    again = policy.log_prob(obs, sampled.actions, sampled.replay)
    assert policy.model.dtype == torch.bfloat16
    assert sampled.log_probs.dtype == again.log_probs.dtype == torch.float32
    torch.testing.assert_close(again.log_probs, sampled.log_probs, atol=0.05, rtol=0)
    again.log_probs.sum().backward()


@every_kind
def test_a_model_comes_back_from_its_folder(kind, tmp_path):
    from embodied_rl.policies.vlm import presets

    torch.manual_seed(0)
    presets.save(f"tiny/{kind}", tmp_path / "model")
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= files
    policy, read = make(kind), make(kind, seed=9, model=str(tmp_path / "model"))
    found = scored(read, mixed(copies=2), given_answers())
    expected = scored(policy, mixed(copies=2), given_answers())
    torch.testing.assert_close(found.log_probs, expected.log_probs)


def test_state_dict_and_copy_carry_the_whole_policy(tmp_path):
    policy, obs, replay = make(critic="trunk"), mixed(copies=2), given_answers()
    checkpoint.save(tmp_path / "c", {"policy": policy.state_dict()})
    restored = make(critic="trunk", seed=4)
    before = scored(policy, obs, replay)
    assert not torch.allclose(scored(restored, obs, replay).log_probs, before.log_probs)
    restored.load_state_dict(checkpoint.load(tmp_path / "c")["policy"])
    for twin in (restored, copy.deepcopy(policy)):
        assert torch.equal(scored(twin, obs, replay).log_probs, before.log_probs)
        assert torch.equal(twin.value(obs), policy.value(obs))


def test_padding_of_a_rollout_can_be_scored():
    policy = make()
    obs = mixed(copies=2)
    obs = {name: torch.cat([value, torch.zeros_like(value[:2])]) for name, value in obs.items()}
    replay = {n: torch.cat([v, torch.zeros_like(v[:2])]) for n, v in given_answers().items()}
    log_probs = scored(policy, obs, replay).log_probs
    assert bool(log_probs.isfinite().all()) and not log_probs[6:].any()


@pytest.mark.parametrize("at_once", [1, 60])
@pytest.mark.parametrize("kind", KINDS)
def test_portions_of_rows_have_the_scores_and_gradients_of_all_at_once(monkeypatch, kind, at_once):
    policy = make(kind, critic="trunk")
    obs, replay = mixed(copies=2), given_answers()
    weight = torch.randn(6, 9, generator=generator())

    def outcome(order):
        policy.zero_grad()
        output = scored(policy, rows_of(obs, order), rows_of(replay, order))
        (weight[order] * (output.log_probs + 0.1 * output.entropy)).sum().backward()
        return output, {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}

    whole, wanted = outcome(torch.arange(6))
    monkeypatch.setitem(TOKENS_AT_ONCE, "cpu", at_once)
    apart = torch.tensor([4, 0, 2, 1, 5, 3])  # no neighbours with one prompt
    parts, gradients = outcome(apart)
    for name in ("log_probs", "entropy", "values"):
        found, expected = getattr(parts, name), getattr(whole, name)[apart]
        torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        scale = float(wanted[name].abs().max())
        torch.testing.assert_close(gradient, wanted[name], atol=1e-3 * scale + 1e-7, rtol=1e-3)


def test_portions_are_full_and_keep_the_rows_of_a_prompt_together():
    lengths = torch.tensor([4, 9, 9, 1, 4, 20, 9])
    single = {"input_ids": torch.zeros((1, 10), dtype=torch.int64)}
    prompts = Prompts([single] * 3, rows=torch.tensor([0, 1, 1, 0, 0, 2, 1]), padding=0)
    # prompt 0 has 19 tokens with its answers, prompt 1 has 37 and prompt 2 has 30
    portions = {
        n: [rows.tolist() for rows in prompts.portions(lengths, at_once=n)] for n in (1, 30, 80, 86)
    }
    assert portions[1] == [[0], [3], [4], [1], [2], [6], [5]]
    assert portions[30] == [[0, 3, 4], [1, 2], [6], [5]]
    assert portions[80] == [[0, 3, 4, 1, 2, 6], [5]]
    assert portions[86] == [[0, 3, 4, 1, 2, 6, 5]]
    chosen = prompts.select(torch.tensor([5, 3, 0]))
    assert chosen.rows.tolist() == [1, 0, 0] and len(chosen.singles) == 2


def test_what_cannot_be_served_is_refused_in_a_sentence(tmp_path):
    import json

    with pytest.raises(ValueError, match=r"tiny/qwen2_5_vl"):
        make(model=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="there is no preset 'tiny/bert'"):
        make("bert")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"never tried with model type 'bert'.*smolvlm"):
        make(model=str(tmp_path))
    with pytest.raises(ValueError, match="temperature"):
        make(temperature=0.0)
    with pytest.raises(ValueError, match="was it cut off"):
        obs = conversations(("What colour?", [BLUE]))
        obs["chat"][:, 40:] = 0
        make().sample(obs, generator=generator())
    with pytest.raises(ValueError, match="shows 1 images and its observation holds 2"):
        obs = conversations(("What colour?", [BLUE]))
        obs["image_sizes"][:] = 56
        make().sample(obs, generator=generator())


@pytest.mark.parametrize("stop", [(), ("e",)])
def test_answers_that_were_cut_and_tokens_that_are_digits_are_marked(stop):
    policy, obs = make(max_new_tokens=6, temperature=3.0, stop=stop), mixed(copies=100)
    sampled = policy.sample(obs, generator=generator())
    replay, ends = sampled.replay, {policy.tokenizer.eos_token_id}
    ends |= set(torch.tensor(policy.model.generation_config.eos_token_id or []).view(-1).tolist())
    rows = zip(replay["tokens"].tolist(), replay["num_tokens"].tolist(), strict=True)
    for row, (tokens, count) in enumerate(rows):
        said = policy.tokenizer.decode(tokens[:count], skip_special_tokens=True)
        finished = tokens[count - 1] in ends or any(word in said for word in stop)
        assert bool(replay["unfinished"][row]) == (not finished) and (finished or count == 6)
        words = policy.tokenizer.convert_ids_to_tokens(tokens)
        digits = [any(c in "0123456789" for c in word) for word in words]
        assert replay["numeric"][row].tolist() == [d and i < count for i, d in enumerate(digits)]
    assert 0 < replay["unfinished"].sum() < len(replay["unfinished"]) and replay["numeric"].any()
