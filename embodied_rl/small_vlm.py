r"""Building the real small vision-language model: assembled from packages, its projector trained.

Text model and vision tower are frozen; pictures and questions are those of the train split of
``shapes_vqa``. First the projector P is fitted to words: where token f of the vision tower sees an
object, P f shall be the sum of the embeddings of its words e, else that of "nothing",

    min_P  E |P f - \sum_{words} e|^2 / E |\sum_{words} e|^2,

which costs no pass through the text model. Then batches of captions ("red circle top left, ...",
five objects) and of questions with their reference answers (colour, count and position of one
object) take turns; the loss is the cross entropy of what is to be said in nats per token. There the
frozen parts run in bfloat16; the weights W of the projector are kept in float32 and rounded for
every pass:

    W_16 = round(W),    W <- AdamW(W, dL/dW_16).

Axes: ``B`` pictures of a batch, ``P`` tokens of a picture, ``F`` features of the tower, ``E`` of
the text model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from embodied_rl.algorithms.sft import warmup_cosine
from embodied_rl.envs.vqa.env import encode_chat, encode_text
from embodied_rl.envs.vqa.scene import COLOURS, SHAPES
from embodied_rl.envs.vqa.shapes import POSITIONS, ShapesVQAOptions, make_question
from embodied_rl.metrics import Progress
from embodied_rl.registry import registry
from embodied_rl.seeding import derive_seed
from embodied_rl.types import PolicySpec, Question, TensorDict

OPTIONS = ShapesVQAOptions()
"""Of pictures that are described."""
ASKED = ShapesVQAOptions(kinds=("colour", "count", "position"), num_objects=1, max_count=2)
"""Of questions: one object, or as many as the answer needs."""
CHAT_BYTES, ANSWER_BYTES = 512, 512
PATCH = 32
"""Pixels of the side of a token's square."""
DESCRIBE = "Describe the picture."
NOTHING = "nothing"
WORD_STEPS, WORD_TOKENS = 600, 1024
"""Gradient steps of fitting words, and tokens of each."""


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """How the projector is trained.

    Attributes:
        num_pictures: whose tokens are fitted to words beforehand; 0: no such fit.
        num_steps: gradient steps through the text model, every other one on captions.
        batch_size: B pictures of a step.
        learning_rate: largest one; warm-up over 5 % of the steps, then cosine decay to 0.
        image_size: side that pictures are scaled to.
        dtype: of the frozen parts while training.
        seed: of pictures, questions and the projector's first weights.
    """

    num_pictures: int = 1500
    num_steps: int = 160
    batch_size: int = 8
    learning_rate: float = 2e-3
    image_size: int = 128
    dtype: str = "bfloat16"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_pictures, self.num_steps) < 0 or self.batch_size < 1:
            raise ValueError(
                f"{self.num_pictures} pictures, then {self.num_steps} steps of {self.batch_size}: "
                "use 0 or more, and at least 1 picture in a step"
            )


def build_small_vlm(folder: Path, config: ProjectorConfig, *, progress: Progress) -> None:
    """Assemble the model, train its projector and write it to ``folder`` in the hub's layout.

    Raises:
        ValueError: a package is missing or holds another file, or ``folder`` is not empty.
    """
    registry("policies").get("vlm")  # says what is missing where the extra vlm is
    from embodied_rl.policies.vlm import processing, small

    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: name a new folder")
    torch.manual_seed(derive_seed(config.seed, "projector"))
    model, processor = small.assemble(image_size=config.image_size)
    # saved once untrained: training reads it like any other model, in its own precision
    model.save_pretrained(folder)
    processing.save_processor(processor, folder)
    if config.num_pictures:
        _watch("words", fit_words(make_policy(folder), model, config), WORD_STEPS, progress)
        model.save_pretrained(folder)
    if config.num_steps:
        losses = train_projector(make_policy(folder, dtype=config.dtype), model, config)
        _watch("projector", losses, config.num_steps, progress)
        model.save_pretrained(folder)


def _watch(label: str, losses: Iterator[Tensor], total: int, progress: Progress) -> None:
    recent: list[float] = []
    for step, loss in enumerate(losses, 1):
        recent = [*recent[-19:], float(loss)]
        progress.update(label, step, total, f"loss {sum(recent) / len(recent):.3f}")


def make_policy(folder: Path | str, **options: Any) -> Any:
    """The saved model as a policy that answers questions about pictures of one size.

    Args:
        folder: of the model.
        options: of policy ``vlm``, e.g. ``dtype``.
    """
    spec = PolicySpec(
        obs_shapes={"chat": (CHAT_BYTES,), "images": (1, 64, 64, 3), "image_sizes": (1, 2)},
        obs_dtypes={"chat": "uint8", "images": "uint8", "image_sizes": "int64"},
        text_bytes=ANSWER_BYTES,
    )
    return registry("policies").get("vlm")(spec, model=str(folder), **options)


def fit_words(policy: Any, model: Any, config: ProjectorConfig) -> Iterator[Tensor]:
    """Fit the projector of ``model`` to the words of what each token shows; yields the losses.

    Args:
        policy: the same model as a policy, which prepares pictures.
        model: whose projector is trained.
        config: options.
    """
    table = model.get_input_embeddings().weight.detach()
    vectors = {
        word: table[policy.tokenizer.encode(" " + word, add_special_tokens=False)].sum(0)
        for word in (*COLOURS, *SHAPES, NOTHING)
    }
    features, targets = [], []
    for first in range(0, config.num_pictures, config.batch_size):
        questions = draw_questions(config, first // config.batch_size)
        pixels = policy.reader(observations(questions)).inputs["pixel_values"]
        with torch.no_grad():
            features.append(model.model.vision_tower(pixels).last_hidden_state)
        targets += [word_targets(question, vectors, config.image_size) for question in questions]
    inputs, wanted = torch.cat(features).flatten(0, 1), torch.cat(targets)
    projector, scale = model.model.multi_modal_projector, wanted.square().mean()
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(WORD_STEPS):
        optimizer.param_groups[0]["lr"] = 1e-3 * warmup_cosine(step, total=WORD_STEPS)
        pick = torch.randint(len(inputs), (WORD_TOKENS,))
        loss = (projector(inputs[pick]) - wanted[pick]).square().mean() / scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.detach()


def word_targets(question: Question, vectors: dict[str, Tensor], image_size: int) -> Tensor:
    """``[P, E]`` sum of the vectors of the words for what is in the square of each token."""
    side, (height, width) = image_size // PATCH, question.images[0].shape[:2]
    targets = vectors[NOTHING].repeat(side * side, 1)
    items: Any = question.data["objects"]
    for item in items:
        token = item.y * side // height * side + item.x * side // width
        targets[token] = vectors[item.colour] + vectors[item.shape]
    return targets


def train_projector(policy: Any, model: Any, config: ProjectorConfig) -> Iterator[Tensor]:
    """Train the projector of ``model`` in float32 by the losses of ``policy``; yields them.

    Args:
        policy: the same model as a policy, in the precision to compute in; its projector follows.
        model: whose projector is trained.
        config: options.
    """
    policy.requires_grad_(False)
    rounded = list(policy.model.model.multi_modal_projector.requires_grad_(True).parameters())
    weights = list(model.model.multi_modal_projector.parameters())
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0)
    for step in range(config.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warmup_cosine(step, total=config.num_steps)
        obs, answers = batch(config, step)
        mask = torch.ones((len(answers), 1), dtype=torch.bool)
        loss = policy.imitation_loss(obs, answers, mask, generator=None)
        loss.backward()
        for weight, own in zip(weights, rounded, strict=True):
            assert own.grad is not None
            weight.grad, own.grad = own.grad.to(weight.dtype), None
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            for weight, own in zip(weights, rounded, strict=True):
                own.copy_(weight)
        yield loss.detach()


def batch(config: ProjectorConfig, step: int) -> tuple[TensorDict, Tensor]:
    """(obs [B, ...], answers uint8 [B, A]) of a step: captions in even ones, else answers."""
    if step % 2 == 0:
        questions = [captioned(question) for question in draw_questions(config, step)]
    else:
        questions = draw_questions(config, step, options=ASKED)
    answers = encode_text((q.answer for q in questions), ANSWER_BYTES, name="answer_bytes")
    return observations(questions), torch.from_numpy(answers)


def draw_questions(
    config: ProjectorConfig, number: int, *, options: ShapesVQAOptions = OPTIONS
) -> list[Question]:
    """B questions of the train split; another ``number``, other questions."""
    seeds = [derive_seed(config.seed, "projector", number, row) for row in range(config.batch_size)]
    return [make_question(options, seed=seed, split="train") for seed in seeds]


def captioned(question: Question) -> Question:
    """The picture of a question with a caption to be made, e.g. "red circle top left, ..."."""
    items: Any = question.data["objects"]
    cell, middle = OPTIONS.size // OPTIONS.grid, OPTIONS.size // 2
    words = []
    for item in sorted(items, key=lambda item: (item.y // cell, item.x // cell)):
        corner = POSITIONS[2 * (item.y >= middle) + (item.x >= middle)]
        words.append(f"{item.colour} {item.shape} {corner}")
    return replace(question, prompt=DESCRIBE, answer=", ".join(words))


def observations(questions: Sequence[Question]) -> TensorDict:
    """What environments of words show for questions with one picture each of equal sizes."""
    images = torch.from_numpy(np.stack([question.images[0] for question in questions]))
    chats = encode_text((encode_chat(q, "") for q in questions), CHAT_BYTES, name="chat_bytes")
    sizes = torch.tensor(images.shape[1:3]).expand(len(questions), 1, 2).clone()
    return {"chat": torch.from_numpy(chats), "images": images.unsqueeze(1), "image_sizes": sizes}
