"""Question answering as a ``VectorEnv``: ``reset`` asks, one answer ends the episode.

Observation, with leading axis N (row); C bytes of text, M pictures of at most H x W pixels:

- ``chat`` uint8 [C]: UTF-8 of a JSON list of messages ``{"role": ..., "content": [{"type":
  "image"}, ..., {"type": "text", "text": ...}]}``, padded with zeros;
- ``images`` uint8 [M, H, W, 3]: the pictures in the order in which the chat names them, each in
  the upper left corner, padded with zeros;
- ``image_sizes`` int64 [M, 2]: height and width of each, 0 where there is none.

Action: uint8 [A], UTF-8 of the answer, padded with zeros. What is no UTF-8 is wrong, earns nothing
and is counted. The question of an episode is a function of its seed alone, and its seeds are those
of every other environment (see ``embodied_rl.envs.vector.simulator``).

The reward is a sum of named terms (``info["reward_terms"]``), see `scoring`; ``success`` is the
task's own check, see `answers`. Two more terms have no share in the reward: ``malformed``, 1 where
the answer was no UTF-8, and ``failed``, 1 where the reward raised or was not finite.

Rows of a group get the same question. Axes: n rows of a partial call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias, get_args, get_type_hints

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces

from embodied_rl.envs.base import ArrayDict, IntArray, Resume, SimulatorVectorEnv, Transition
from embodied_rl.envs.spaces import Array, TextSpace
from embodied_rl.envs.vector.rows import RowSpec
from embodied_rl.envs.vector.simulator import RowSimulator
from embodied_rl.envs.vqa import TASKS, load_task
from embodied_rl.envs.vqa.answers import same_number
from embodied_rl.envs.vqa.common import Split, blank_image, shuffle_images
from embodied_rl.envs.vqa.files import FileOptions, QuestionFile
from embodied_rl.envs.vqa.forms import Form, Prompt, shaped
from embodied_rl.envs.vqa.scoring import Score, Scoring, scoring_of
from embodied_rl.registry import near_names
from embodied_rl.types import Question

Pictures: TypeAlias = Literal["shown", "blank", "swapped"]
SAMPLES = 32
"""Questions per task and split by which the sizes of texts are chosen."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the questions of one task id come from.

    Attributes:
        name: of the task.
        about: what it asks, in words.
        ask: the question of an episode seed.
        check: whether an answer is right.
        samples: questions that show how large texts, pictures and answers get.
        num_images: most pictures of a question.
        image_size: height and width that hold every picture.
    """

    name: str
    about: str
    ask: Callable[[int], Question]
    check: Callable[[Question, str], bool]
    samples: tuple[Question, ...]
    num_images: int
    image_size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """C, M, H, W and A of the module's docstring."""

    chat_bytes: int
    num_images: int
    height: int
    width: int
    answer_bytes: int


def make(
    *,
    num_envs: int,
    seed: int,
    tasks: str | Sequence[str] = (),
    knobs: Mapping[str, Any] | None = None,
    file: str = "",
    image_folder: str = "",
    heldout_share: float = 0.1,
    max_image_side: int = 0,
    split: Split = "train",
    pictures: Pictures = "shown",
    reward: str | Mapping[str, Any] | Score = "correct",
    reward_options: Mapping[str, Any] | None = None,
    system_prompt: str = "",
    prompt: Prompt = "full",
    answer_form: Form = "plain",
    chat_bytes: int = 0,
    answer_bytes: int = 0,
    chunk_length: int = 1,
    max_episode_steps: int | None = None,
    autoreset: bool = True,
    group_size: int = 1,
    device: str | torch.device = "cpu",
    episode_seeds: Sequence[int] | None = None,
) -> SimulatorVectorEnv:
    """Questions of some tasks, mixed in one batch, or of a file; rows start with tasks in turn.

    Args:
        num_envs: N rows.
        seed: of every row's stream.
        tasks: names of ``embodied_rl.envs.vqa.TASKS``; not with ``file``.
        knobs: options of a task by its name, e.g. ``{"shapes_vqa": {"shortcut": 0.7}}``.
        file: ``.jsonl``, ``.parquet`` or ``.json`` file of your own questions (see `files`); each
            task that it names is a task id. Seed s asks number s modulo their count.
        image_folder: that the file's picture paths are relative to; empty: the file's folder.
        heldout_share: of the file's questions that are kept out of training.
        max_image_side: larger pictures of the file are scaled down to this many pixels; 0: none.
        split: ``"train"`` or ``"heldout"``.
        pictures: ``"shown"``, or a control of how much they matter: ``"blank"`` (plain grey) or
            ``"swapped"`` (those of another question of the task).
        reward: ``"correct"`` (1 if the task's own check says so, else 0), ``"task"`` (the
            registered reward that each question names), any registered reward, a mapping of terms
            ``{name: {reward, weight, tasks, options, scores_from}}`` (see `scoring`; group rewards
            are scored over the answers of a group), or a ``Score``.
        reward_options: of a registered reward.
        system_prompt: first message of every chat; empty: none.
        prompt: of tasks, ``full`` or ``brief``; see `forms`.
        answer_form: of tasks, ``plain``, ``think`` or ``reflect``; see `forms`.
        chat_bytes: C; 0: a power of two, at least twice what samples of the questions need.
        answer_bytes: A; 0: likewise, by their reference answers.
        chunk_length: answers per decision; only the first one is read.
        max_episode_steps: an episode takes one step anyway.
        autoreset: SAME_STEP if True, DISABLED if False.
        group_size: G consecutive rows get the same question.
        device: of observations, rewards and flags.
        episode_seeds: [N] seeds of the rows' first questions instead of derived ones.

    Raises:
        ValueError: unknown task, knob, split or reward, a file that cannot be read, or a number
            that does not fit.
    """
    options = FileOptions(
        path=file,
        image_folder=image_folder or None,
        heldout_share=heldout_share,
        max_image_side=max_image_side,
    )
    forms = {"prompt": prompt, "form": answer_form}
    sources = choose_sources(tasks, knobs or {}, options, split=split, forms=forms)
    sources = with_pictures(sources, pictures)
    simulator = VQASimulator(
        sources,
        sizes=choose_sizes(sources, system_prompt, chat_bytes, answer_bytes),
        scoring=scoring_of(
            reward,
            reward_options or {},
            samples={source.name: source.samples[0] for source in sources},
            checks={source.name: source.check for source in sources},
        ),
        system_prompt=system_prompt,
        num_envs=num_envs,
        seed=seed,
        group_size=group_size,
        episode_seeds=episode_seeds,
    )
    return SimulatorVectorEnv(
        simulator,
        chunk_length=chunk_length,
        max_episode_steps=max_episode_steps,
        autoreset=autoreset,
        group_size=group_size,
        device=device,
    )


# --- where questions come from ---------------------------------------------------------------


def choose_sources(
    tasks: str | Sequence[str],
    knobs: Mapping[str, Any],
    file: FileOptions,
    *,
    split: Split,
    forms: Mapping[str, Any],
) -> tuple[Source, ...]:
    """The sources of ``tasks``, or those of ``file`` where its path is not empty.

    Raises:
        ValueError: both or neither, knobs for a file, an unknown split, or what they refuse.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split={split!r}: give 'train' or 'heldout'")
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    if bool(names) == bool(file.path):
        raise ValueError("give either tasks, names of questions made by program, or a file")
    if not file.path:
        return task_sources(names, knobs, split=split, forms=forms)
    if set(forms.values()) != {"full", "plain"}:
        raise ValueError("prompt and answer_form are those of tasks: leave them out for a file")
    if knobs:
        raise ValueError("knobs belong to tasks: leave them out for the questions of a file")
    return file_sources(file, split=split)


def with_pictures(sources: Sequence[Source], pictures: Pictures) -> tuple[Source, ...]:
    """The same questions with the pictures of a control (see `make`).

    Raises:
        ValueError: unknown control.
    """
    if pictures not in get_args(Pictures):
        raise ValueError(f"pictures={pictures!r}: give one of {', '.join(get_args(Pictures))}")
    if pictures == "shown":
        return tuple(sources)
    ask = _ask_blank if pictures == "blank" else _ask_swapped
    return tuple(replace(source, ask=partial(ask, source.ask)) for source in sources)


def _ask_blank(ask: Callable[[int], Question], seed: int) -> Question:
    return blank_image(ask(seed))


def _ask_swapped(ask: Callable[[int], Question], seed: int) -> Question:
    return shuffle_images([ask(seed), ask(seed + 1)])[0]


def task_sources(
    names: Sequence[str], knobs: Mapping[str, Any], *, split: Split, forms: Mapping[str, Any]
) -> tuple[Source, ...]:
    """One source per task.

    Raises:
        ValueError: unknown task or knob, a task twice, or a knob of a task that is not asked for.
    """
    if len(set(names)) < len(names):
        raise ValueError(f"tasks={names}: name each task once")
    for name in knobs:
        if name not in names:
            hint = near_names(name, names)
            raise ValueError(f"knobs of {name!r}, which is none of the tasks{hint}")
    return tuple(_task_source(name, knobs.get(name, {}), split, forms) for name in names)


def _task_source(
    name: str, knobs: Mapping[str, Any], split: Split, forms: Mapping[str, Any]
) -> Source:
    task = shaped(load_task(name), **forms)
    options = options_from(task.options, knobs, where=f"knobs of {name}")
    make_question = task.make_question
    drawn = [make_question(options, seed=0, split=side) for side in ("train", "heldout")]
    undrawn = [
        make_question(options, seed=number, split=side, draw=False)
        for side in ("train", "heldout")
        for number in range(1, SAMPLES)
    ]
    shapes = [picture.shape for question in drawn for picture in question.images]
    return Source(
        name=name,
        about=TASKS[name].about,
        ask=lambda seed: make_question(options, seed=seed, split=split),
        check=task.check,
        samples=(*drawn, *undrawn),
        num_images=max(len(question.images) for question in drawn),
        image_size=(max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)),
    )


def options_from(cls: type[Any], values: Mapping[str, Any], *, where: str) -> Any:
    """An options dataclass from plain data; lists become tuples, mappings options of their own.

    Raises:
        ValueError: an unknown name, or a value that the options refuse.
    """
    known, given = {field.name for field in fields(cls)}, {}
    hints = get_type_hints(cls)
    for name, value in values.items():
        if name not in known:
            hint = near_names(name, known)
            raise ValueError(f"{where}: no {name!r}{hint} (there are: {', '.join(sorted(known))})")
        if isinstance(value, Mapping) and is_dataclass(hints[name]):
            given[name] = options_from(hints[name], value, where=f"{where}.{name}")
        else:
            given[name] = tuple(value) if isinstance(value, list) else value
    return cls(**given)


def file_sources(options: FileOptions, *, split: Split) -> tuple[Source, ...]:
    """One source per task that the file names, in the order of their first questions.

    Raises:
        ValueError: what `QuestionFile` refuses, or a task without a question in ``split``.
    """
    sides = {side: QuestionFile(options, split=side) for side in ("train", "heldout")}
    asked, both = sides[split], (*sides["train"].texts(), *sides["heldout"].texts())
    names = tuple(dict.fromkeys(question.task for question in both))
    heights, widths, counts = zip(*(side.extent for side in sides.values()), strict=True)
    sources = []
    for name in names:
        numbers = [i for i, question in enumerate(asked.texts()) if question.task == name]
        if not numbers:
            raise ValueError(
                f"{options.path} has no question of task {name!r} in the split {split!r}: change "
                "heldout_share or add questions"
            )
        sources.append(
            Source(
                name=name,
                about=f"answer the questions of {name}",
                ask=partial(_ask_file, asked, tuple(numbers)),
                check=same_number,
                samples=tuple(question for question in both if question.task == name),
                num_images=max(counts),
                image_size=(max(heights), max(widths)),
            )
        )
    return tuple(sources)


def _ask_file(questions: QuestionFile, numbers: Sequence[int], seed: int) -> Question:
    return questions[numbers[seed % len(numbers)]]


def choose_sizes(
    sources: Sequence[Source], system_prompt: str, chat_bytes: int, answer_bytes: int
) -> Sizes:
    """Room for every question of ``sources``; 0 bytes: chosen by their samples."""
    samples = [question for source in sources for question in source.samples]
    num_images = max(source.num_images for source in sources)
    longest = max(len(encode_chat(question, system_prompt, num_images)) for question in samples)
    answer = max(len(reference_text(question).encode()) for question in samples)
    return Sizes(
        chat_bytes=chat_bytes or _power_of_two(2 * longest),
        num_images=max(num_images, 1),
        height=max(source.image_size[0] for source in sources),
        width=max(source.image_size[1] for source in sources),
        answer_bytes=answer_bytes or _power_of_two(max(2 * answer, 64)),
    )


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


# --- texts as bytes --------------------------------------------------------------------------


def encode_chat(question: Question, system_prompt: str, num_images: int | None = None) -> bytes:
    """The opening messages of a question; ``num_images`` replaces the number of its pictures."""
    count = len(question.images) if num_images is None else num_images
    content = [{"type": "image"}] * count + [{"type": "text", "text": question.prompt}]
    messages = [{"role": "user", "content": content}]
    if system_prompt:
        text = {"type": "text", "text": system_prompt}
        messages.insert(0, {"role": "system", "content": [text]})
    return json.dumps(messages, ensure_ascii=False).encode()


def reference_text(question: Question) -> str:
    """The reference answer in the form that is asked for."""
    return question.data.get("reference", question.answer)


def encode_text(texts: Iterable[str | bytes], size: int, *, name: str) -> npt.NDArray[np.uint8]:
    """UTF-8 of each text, padded with zeros to uint8 ``[n, size]``.

    Raises:
        ValueError: a text is longer; the message names the option ``name``.
    """
    rows = [text.encode() if isinstance(text, str) else text for text in texts]
    array = np.zeros((len(rows), size), np.uint8)
    for index, row in enumerate(rows):
        if len(row) > size:
            raise ValueError(f"a text of {len(row)} bytes does not fit: give {name}={len(row)}")
        array[index, : len(row)] = np.frombuffer(row, np.uint8)
    return array


def decode_text(row: npt.NDArray[np.uint8]) -> str | None:
    """The text of zero-padded bytes ``[size]``, None if they are no UTF-8."""
    try:
        return row.tobytes().rstrip(b"\0").decode()
    except UnicodeDecodeError:
        return None


class VQASimulator(RowSimulator):
    """N rows, each with a question; see the module's docstring.

    Args:
        sources: one per task id.
        sizes: of observations and actions.
        scoring: what answers earn.
        system_prompt: first message of every chat; empty: none.
        num_envs: N rows.
        seed: of every row's stream.
        group_size: G consecutive rows share their question.
        episode_seeds: [N] seeds of the rows' first questions instead of derived ones.
    """

    # One answer ends an episode, so that its start is all there is to restore.
    resume: Resume = "exact"

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        sizes: Sizes,
        scoring: Scoring,
        system_prompt: str,
        num_envs: int,
        seed: int,
        group_size: int,
        episode_seeds: Sequence[int] | None,
    ) -> None:
        self._sources = tuple(sources)
        self._sizes = sizes
        self._scoring = scoring
        self._group_size = group_size
        self._system_prompt = system_prompt
        self.questions: list[Question] = [self._sources[0].samples[0]] * num_envs
        """Question of every row."""
        super().__init__(
            RowSpec(
                observation_space(sizes),
                TextSpace(sizes.answer_bytes),
                tuple(source.name for source in sources),
                tuple(source.about for source in sources),
            ),
            num_envs=num_envs,
            seed=seed,
            group_size=group_size,
            episode_seeds=episode_seeds,
        )

    def _restart(self, rows: IntArray) -> ArrayDict:
        made: dict[tuple[int, int], Question] = {}  # of rows of a group only one
        for row in rows.tolist():
            key = int(self._task_ids[row]), self._start_seed(row)
            if key not in made:
                made[key] = self._sources[key[0]].ask(key[1])
            self.questions[row] = made[key]
        return self._observe(rows)

    def _observe(self, rows: IntArray) -> ArrayDict:
        sizes, questions = self._sizes, [self.questions[row] for row in rows.tolist()]
        shape = (len(questions), sizes.num_images, sizes.height, sizes.width, 3)
        images = np.zeros(shape, np.uint8)
        image_sizes = np.zeros((*shape[:2], 2), np.int64)
        for index, question in enumerate(questions):
            for number, picture in enumerate(question.images):
                height, width = picture.shape[:2]
                images[index, number, :height, :width] = picture
                image_sizes[index, number] = height, width
        chats = (encode_chat(question, self._system_prompt) for question in questions)
        return {
            "chat": encode_text(chats, sizes.chat_bytes, name="chat_bytes"),
            "images": images,
            "image_sizes": image_sizes,
        }

    def send(self, actions: Array, rows: IntArray | None) -> None:
        """See ``Simulator.send``; the answers are judged in ``recv``.

        Raises:
            ValueError: only a part of a group answers, and a group reward compares all of it.
        """
        rows = self._every if rows is None else rows
        if self._scoring.whole_groups:
            self._require_whole_groups(rows)
        self._sent = (actions, rows)

    def _require_whole_groups(self, rows: IntArray) -> None:
        groups, counts = np.unique(self._groups[rows], return_counts=True)
        starts = self._starts.reshape(-1, self._group_size)[groups]
        if (counts < self._group_size).any() or (starts != starts[:, :1]).any():
            raise ValueError(
                "a group reward compares all answers to a question, and only some rows of a group "
                "of it answer now: reset whole groups, or leave the group reward out"
            )

    def recv(self) -> Transition:
        """See ``Simulator.recv``; every answer ends its episode."""
        actions, rows = self._sent
        texts = [decode_text(action) for action in actions]
        good = np.array([i for i, text in enumerate(texts) if text is not None], np.int64)
        verdicts = self._scoring.judge(
            [self.questions[row] for row in rows[good].tolist()],
            [text for text in texts if text is not None],
            self._groups[rows[good]],
        )
        terms = {name: np.zeros(rows.size, np.float32) for name in self._scoring.term_names}
        for name, values in terms.items():
            values[good] = verdicts.terms[name]
        rewards = sum(terms.values(), np.zeros(rows.size, np.float32))
        counts = {name: np.zeros(rows.size, np.float32) for name in ("malformed", "failed")}
        counts["malformed"] += 1
        counts["malformed"][good] = 0
        counts["failed"][good] = verdicts.failed
        success = np.zeros(rows.size, np.bool_)
        success[good] = verdicts.success
        return Transition(
            obs=self._observe(rows),
            rewards=rewards,
            terminated=np.ones(rows.size, np.bool_),
            truncated=np.zeros(rows.size, np.bool_),
            success=success,
            reward_terms=terms | counts,
        )

    def reference_answers(self) -> torch.Tensor:
        """uint8 [N, A]: the reference answer of every row, as the action that gives it."""
        answers = (reference_text(question) for question in self.questions)
        size = self._sizes.answer_bytes
        return torch.from_numpy(encode_text(answers, size, name="answer_bytes"))

    def render(self, row: int) -> npt.NDArray[np.uint8]:
        """[height, width, 3] picture of the question of ``row``: its pictures and its text."""
        from embodied_rl.envs.vqa.sheet import draw_question

        question = self.questions[row]
        return draw_question(question, width=440, text=question.prompt)

    def close(self) -> None:
        """Nothing to release."""


def observation_space(sizes: Sizes) -> spaces.Dict:
    """Of one row."""
    number, height, width = sizes.num_images, sizes.height, sizes.width
    largest = max(height, width)
    return spaces.Dict(
        {
            "chat": spaces.Box(0, 255, (sizes.chat_bytes,), np.uint8),
            "images": spaces.Box(0, 255, (number, height, width, 3), np.uint8),
            "image_sizes": spaces.Box(0, largest, (number, 2), np.int64),
        }
    )
