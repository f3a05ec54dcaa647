"""Open text against open text: captions, token embeddings, facts, checklists, retrieval.

Words are runs of letters and digits, lower case. Embeddings come from ``embed`` (words ->
``[words, D]``), by default hashed character trigrams: spelling, not meaning, but without a model.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embodied_rl.rewards import parse
from embodied_rl.rewards.base import clamp, required
from embodied_rl.rewards.format import format_tags
from embodied_rl.rewards.match import match, normalize
from embodied_rl.types import Question

Array = npt.NDArray[np.float64]
Embed = Callable[[Sequence[str]], Array]
WORD = re.compile(r"[^\W_]+")
MAX_WORDS = 2000
"""Longer texts score 0: the comparisons are quadratic in the number of words."""
DIMENSION = 256


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, lower case."""
    return WORD.findall(text.casefold())


def trigram_embedding(words: Sequence[str]) -> Array:
    """``[words, 256]`` counts of hashed character trigrams of ``^word$``; deterministic."""
    table = np.zeros((len(words), DIMENSION))
    for row, word in enumerate(words):
        marked = f"^{word}$"
        for start in range(len(marked) - 2):
            table[row, zlib.crc32(marked[start : start + 3].encode()) % DIMENSION] += 1
    return table


def _unit(rows: Array) -> Array:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def bleu4(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """BLEU with n = 1..4, brevity penalty, 1 added to both counts for n > 1 (Lin and Och 2004)."""
    if not candidate or not reference:
        return 0.0
    logs = 0.0
    for n in range(1, 5):
        said, true = _grams(candidate, n), _grams(reference, n)
        hits, total = (said & true).total(), said.total()
        if n > 1:
            hits, total = hits + 1, total + 1
        if hits == 0:
            return 0.0
        logs += math.log(hits / total) / 4
    return math.exp(logs + min(0.0, 1 - len(reference) / len(candidate)))


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def rouge_l(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the longest common subsequence (Lin 2004)."""
    if not candidate or not reference:
        return 0.0
    row = [0] * (len(reference) + 1)
    for word in candidate:
        diagonal = 0
        for j, other in enumerate(reference, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(candidate) + len(reference))


def caption_overlap(response: str, question: Question) -> float:
    """Mean of BLEU-4 and ROUGE-L of ``<caption>`` and ``data["caption"]`` (SATORI-R1, 49)."""
    said = words_of(parse.block(response, "caption") or "")
    true = words_of(required(question, "caption"))
    if len(said) > MAX_WORDS:
        return 0.0
    return (bleu4(said, true) + rouge_l(said, true)) / 2


def similarity(said: Sequence[str], true: Sequence[str], embed: Embed) -> float:
    """(mean_i max_j cos(e_i, g_j) + mean_j max_i cos(e_i, g_j)) / 2 of words, in [0, 1].

    Negative cosines count as 0. A word of the reference said over and over would earn the first
    half, so a word counts at most as often as it occurs there; the others earn 0.
    """
    if not said or len(said) > MAX_WORDS:
        return 0.0
    cosines = np.clip(_unit(embed(said)) @ _unit(embed(true)).T, 0.0, 1.0)
    forward = cosines.max(axis=1) * _counted(said, Counter(true))
    return float((forward.mean() + cosines.max(axis=0).mean()) / 2)


def bmas(response: str, question: Question, *, embed: Embed = trigram_embedding) -> float:
    """Bidirectional max-average similarity of words with the reference (Mixed-R1, system 67).

    ``similarity`` has the formula, which was inferred from the name.

    Raises:
        ValueError: the reference has no words.
    """
    true = words_of(question.answer)
    if not true:
        raise ValueError(f"task {question.task!r} has no words in its reference answer")
    return similarity(words_of(parse.answer_text(response) or ""), true, embed)


def rephrase_similarity(
    response: str, question: Question, *, embed: Embed = trigram_embedding
) -> float:
    """Likeness of ``<rephrase>`` to ``data["rephrase"]``, if the answer is right (DocThinker, 33).

    (s(said) - s(question)) / (1 - s(question)), at least 0, where s is the ``similarity`` with the
    reference wording: the unchanged question earns nothing. The paper's measure is not public.

    Args:
        response: ``<rephrase>`` and an answer.
        question: ``data["rephrase"]``, the question in better words; ``data["question"]``, the
            question without instructions (default: the prompt).
        embed: words -> ``[words, D]``.

    Raises:
        ValueError: the reference wording is that of the question, or empty.
    """
    true = words_of(required(question, "rephrase"))
    asked = words_of(question.data.get("question", question.prompt))
    unchanged = similarity(asked, true, embed) if true else 1.0
    if unchanged > 1 - 1e-9:
        raise ValueError(f"data['rephrase'] of {question.task!r} must differ from the question")
    if not match(response, question):
        return 0.0
    said = words_of(parse.block(response, "rephrase") or "")
    return max((similarity(said, true, embed) - unchanged) / (1 - unchanged), 0.0)


def _counted(words: Sequence[str], allowed: Counter[str]) -> Array:
    seen: Counter[str] = Counter()
    counted = []
    for word in words:
        seen[word] += 1
        counted.append(seen[word] <= max(allowed[word], 1))
    return np.asarray(counted, dtype=np.float64)


def visual_fact_coverage(response: str, question: Question) -> float:
    """Share of ``data["facts"]`` that the response states and nowhere contradicts (system 21).

    A fact is (subject, value, all values it could have had). It is stated where one sentence names
    subject and value, and contradicted where one names the subject with another of the values: who
    lists every value states nothing. The paper asks a judge instead.
    """
    facts = required(question, "facts")
    sentences = [f" {' '.join(words_of(s))} " for s in re.split(r"[.!?;,\n]", response)]
    return sum(_stated(fact, sentences) for fact in facts) / len(facts)


def _stated(fact: Sequence[Any], sentences: Sequence[str]) -> bool:
    subject, value, values = fact
    about = [s for s in sentences if f" {' '.join(words_of(str(subject)))} " in s]
    said = {v for v in map(str, values) if any(f" {' '.join(words_of(v))} " in s for s in about)}
    return said == {str(value)}


def perception_checklist(response: str, question: Question) -> float:
    """Share of sub-questions answered right (PEARL, system 42); 0 unless all are answered.

    The ``<checklist>`` block is a JSON list in the order of ``data["checklist"]``.
    """
    true = required(question, "checklist")
    said = parse.json_value(parse.block(response, "checklist") or "")
    if not isinstance(said, list) or len(said) != len(true):
        return 0.0
    pairs = zip(said, true, strict=True)
    return sum(_same(str(a), str(b)) for a, b in pairs) / len(true)


def _same(said: str, true: str) -> bool:
    return normalize(said) == normalize(true)


def embedding_rank_gap(
    response: str, question: Question, *, embed: Embed = trigram_embedding
) -> float:
    """(1 / rank of the positive) * (cos to the positive - mean cos to the negatives) (UME-R1, 70).

    Texts ``data["positive"]`` and ``data["negatives"]``; a text's embedding is the mean over its
    words. The rank is that of the positive among them all, ties against it. A negative gap is 0.
    """
    said = words_of(parse.answer_text(response) or "")
    negatives = required(question, "negatives")
    if not said or len(said) > MAX_WORDS:
        return 0.0
    texts = [said, words_of(required(question, "positive")), *map(words_of, negatives)]
    vectors = _unit(np.stack([_unit(embed(text)).mean(axis=0) for text in texts]))
    cosines = vectors[1:] @ vectors[0]
    rank = 1 + int((cosines[1:] >= cosines[0]).sum())
    return clamp(float(cosines[0] - cosines[1:].mean())) / rank


def ts_composite(response: str, question: Question, *, generic_cap: float = 0.4) -> float:
    """0.9 * right + 0.1 * form + 0.5 * extension if right (TimeMaster, system 37); range [0, 1.5].

    The extension is the share of ``data["facts"]`` in the response, at most ``generic_cap`` where
    it uses one of ``data["generic_phrases"]``; a judge did this in the paper.
    """
    right, form = match(response, question), format_tags(response, question)
    extension = visual_fact_coverage(response, question) if right else 0.0
    text = response.casefold()
    if any(phrase.casefold() in text for phrase in question.data.get("generic_phrases", ())):
        extension = min(extension, generic_cap)
    return 0.9 * right + 0.1 * form + 0.5 * extension
