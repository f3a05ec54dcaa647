"""Question answering as a ``VectorEnv``: ``reset`` asks, and the final answer ends the episode.

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

Turns. With ``max_turns`` > 1, a task that has a ``reply`` may answer a text with a message and new
pictures instead of ending the episode. The chat then grows by what the policy wrote (role
``assistant``) and by the reply (role ``user``, which every chat template knows), the pictures by
those of the reply. The text of the last turn is the final answer, whatever it is. Rewards look at
the final answer; ``Reply.reward`` of a turn is the term ``turn``. What a reply says is in the next
observation and never in an action, so no gradient teaches a policy to say it.

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
from embodied_rl.envs.vqa.common import Reply, Split, Task, blank_image, shuffle_images
from embodied_rl.envs.vqa.files import FileOptions, QuestionFile
from embodied_rl.envs.vqa.forms import Form, Prompt, shaped
from embodied_rl.envs.vqa.scoring import Score, Scoring, scoring_of
from embodied_rl.registry import near_names
from embodied_rl.types import Question

Pictures: TypeAlias = Literal["shown", "blank", "swapped"]
TURN = "turn"
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
        reply: see `common.Task`.
        reply_images, reply_bytes: most pictures of a reply, and bytes of its text.
    """

    name: str
    about: str
    ask: Callable[[int], Question]
    check: Callable[[Question, str], bool]
    samples: tuple[Question, ...]
    num_images: int
    image_size: tuple[int, int]
    reply: Callable[[Question, Sequence[str]], Reply | None] | None = None
    reply_images: int = 0
    reply_bytes: int = 0


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
    max_turns: int = 1,
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
        max_turns: texts that a policy may write for one question, where the task replies to them.
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
    scoring = scoring_of(
        reward,
        reward_options or {},
        samples={source.name: source.samples[0] for source in sources},
        checks={source.name: source.check for source in sources},
    )
    _check_turns(max_turns, sources, scoring)
    simulator = VQASimulator(
        sources,
        sizes=choose_sizes(sources, system_prompt, chat_bytes, answer_bytes, max_turns=max_turns),
        scoring=scoring,
        system_prompt=system_prompt,
        max_turns=max_turns,
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


def _check_turns(max_turns: int, sources: Sequence[Source], scoring: Scoring) -> None:
    if max_turns < 1:
        raise ValueError(f"max_turns={max_turns}: give at least 1")
    if max_turns > 1 and all(source.reply is None for source in sources):
        raise ValueError(f"max_turns={max_turns}: none of the tasks replies to a text, give 1")
    if max_turns > 1 and scoring.whole_groups:
        raise ValueError(
            "a group reward compares answers of one step, and conversations of several turns end "
            "at different ones: set max_turns to 1, or leave the group reward out"
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
    replies = [found for question in drawn for found in _reference_replies(task, question)]
    pictures = [image for part in (*drawn, *replies) for image in part.images]
    shapes = [picture.shape for picture in pictures]
    return Source(
        name=name,
        reply=task.reply,
        reply_images=max((len(found.images) for found in replies), default=0),
        reply_bytes=max((2 * len(found.text.encode()) for found in replies), default=0),
        about=TASKS[name].about,
        ask=lambda seed: make_question(options, seed=seed, split=split),
        check=task.check,
        samples=(*drawn, *undrawn),
        num_images=max(len(question.images) for question in drawn),
        image_size=(max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)),
    )


def _reference_replies(task: Task, question: Question) -> list[Reply]:
    """To the reference texts of a question, and to one that no task can make sense of."""
    if task.reply is None:
        return []
    turns = [*question.data["tool_turns"]]
    told = [task.reply(question, turns[: count + 1]) for count in range(len(turns))]
    broken = [turns[0][:-1]] if turns else []
    return [found for found in (*told, task.reply(question, broken)) if found is not None]


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
    sources: Sequence[Source],
    system_prompt: str,
    chat_bytes: int,
    answer_bytes: int,
    *,
    max_turns: int = 1,
) -> Sizes:
    """Room for every question of ``sources``; 0 bytes: chosen by their samples."""
    samples = [question for source in sources for question in source.samples]
    num_images = max(source.num_images for source in sources)
    longest = max(len(encode_chat(question, system_prompt, num_images)) for question in samples)
    texts = [text for q in samples for text in (reference_text(q), *q.data.get("tool_turns", ()))]
    answer_bytes = answer_bytes or _power_of_two(max(2 * max(len(t.encode()) for t in texts), 64))
    # Of a byte of text JSON makes six at most (\u0000); the rest are the brackets of two messages.
    turn = 6 * answer_bytes + max(source.reply_bytes for source in sources) + 256
    return Sizes(
        chat_bytes=chat_bytes or _power_of_two(2 * longest + (max_turns - 1) * turn),
        num_images=max(
            1,
            *(s.num_images + (max_turns - 1) * s.reply_images for s in sources),
        ),
        height=max(source.image_size[0] for source in sources),
        width=max(source.image_size[1] for source in sources),
        answer_bytes=answer_bytes,
    )


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


# --- texts as bytes --------------------------------------------------------------------------


def encode_chat(
    question: Question,
    system_prompt: str,
    num_images: int | None = None,
    turns: Sequence[tuple[str, Reply]] = (),
) -> bytes:
    """The messages so far.

    Args:
        question: of the first user message.
        system_prompt: empty: none.
        num_images: replaces the number of the question's pictures.
        turns: what the policy wrote and what came back, in order.
    """
    count = len(question.images) if num_images is None else num_images
    messages = [_message("system", system_prompt)] if system_prompt else []
    messages.append(_message("user", question.prompt, num_images=count))
    for text, reply in turns:
        messages.append(_message("assistant", text))
        messages.append(_message("user", reply.text, num_images=len(reply.images)))
    return json.dumps(messages, ensure_ascii=False).encode()


def reference_text(question: Question) -> str:
    """The reference answer in the form that is asked for."""
    return question.data.get("reference", question.answer)


def _message(role: str, text: str, *, num_images: int = 0) -> dict[str, Any]:
    content = [{"type": "image"}] * num_images + [{"type": "text", "text": text}]
    return {"role": role, "content": content}


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
        max_turns: texts of a policy per question.
        num_envs: N rows.
        seed: of every row's stream.
        group_size: G consecutive rows share their question.
        episode_seeds: [N] seeds of the rows' first questions instead of derived ones.
    """

    # Where one answer ends an episode, its start is all there is to restore.
    resume: Resume = "exact"

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        sizes: Sizes,
        scoring: Scoring,
        system_prompt: str,
        max_turns: int,
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
        self.max_turns = max_turns
        """Texts of a policy per question."""
        if max_turns > 1:
            self.resume = "replay"
        self.turns: list[list[tuple[str, Reply]]] = [[] for _ in range(num_envs)]
        """What was written and replied so far, of every row."""
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
            self.questions[row], self.turns[row] = made[key], []
        return self._observe(rows)

    def _observe(self, rows: IntArray) -> ArrayDict:
        sizes, every = self._sizes, rows.tolist()
        shape = (len(every), sizes.num_images, sizes.height, sizes.width, 3)
        images = np.zeros(shape, np.uint8)
        image_sizes = np.zeros((*shape[:2], 2), np.int64)
        for index, row in enumerate(every):
            replied = (image for _, reply in self.turns[row] for image in reply.images)
            for number, picture in enumerate((*self.questions[row].images, *replied)):
                height, width = picture.shape[:2]
                images[index, number, :height, :width] = picture
                image_sizes[index, number] = height, width
        chats = (
            encode_chat(self.questions[row], self._system_prompt, turns=self.turns[row])
            for row in every
        )
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
        """See ``Simulator.recv``; every text that has no reply ends its episode."""
        actions, rows = self._sent
        texts = [decode_text(action) for action in actions]
        replies = [self._reply(row, text) for row, text in zip(rows.tolist(), texts, strict=True)]
        ended = np.array([reply is None for reply in replies], np.bool_)
        final = [None if reply else text for text, reply in zip(texts, replies, strict=True)]
        good = np.array([i for i, text in enumerate(final) if text is not None], np.int64)
        verdicts = self._scoring.judge(
            [self._asked(row) for row in rows[good].tolist()],
            [text for text in final if text is not None],
            self._groups[rows[good]],
        )
        terms = {name: np.zeros(rows.size, np.float32) for name in self._scoring.term_names}
        for name, values in terms.items():
            values[good] = verdicts.terms[name]
        if self.max_turns > 1:
            paid = [reply.reward if reply else 0.0 for reply in replies]
            terms[TURN] = np.array(paid, np.float32)
        rewards = sum(terms.values(), np.zeros(rows.size, np.float32))
        counts = {name: np.zeros(rows.size, np.float32) for name in ("malformed", "failed")}
        counts["malformed"][:] = [text is None for text in texts]
        counts["failed"][good] = verdicts.failed
        success = np.zeros(rows.size, np.bool_)
        success[good] = verdicts.success
        return Transition(
            obs=self._observe(rows),
            rewards=rewards,
            terminated=ended,
            truncated=np.zeros(rows.size, np.bool_),
            success=success,
            reward_terms=terms | counts,
        )

    def _asked(self, row: int) -> Question:
        """The question of ``row`` with ``data["turns"]``, what was written before the answer."""
        question = self.questions[row]
        if self.max_turns == 1:
            return question
        turns = [said for said, _ in self.turns[row]]
        return replace(question, data={**question.data, "turns": turns})

    def _reply(self, row: int, text: str | None) -> Reply | None:
        """What comes back to the text of ``row``, noted; None where it ends the episode."""
        reply, turns = self._sources[int(self._task_ids[row])].reply, self.turns[row]
        if reply is None or text is None or len(turns) + 1 >= self.max_turns:
            return None
        answer = reply(self.questions[row], [*(said for said, _ in turns), text])
        if answer is not None:
            turns.append((text, answer))
        return answer

    def reference_answers(self) -> torch.Tensor:
        """uint8 [N, A]: what the reference writes now in every row, as the action that does.

        That is the answer, or the text of one more turn where the task has one and turns are left.
        """
        answers = (self._reference(row) for row in range(self.num_envs))
        size = self._sizes.answer_bytes
        return torch.from_numpy(encode_text(answers, size, name="answer_bytes"))

    def _reference(self, row: int) -> str:
        question, done = self.questions[row], len(self.turns[row])
        turns = question.data.get("tool_turns", ())[: self.max_turns - 1]
        return turns[done] if done < len(turns) else reference_text(question)

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
