"""``page_rerank``: put the pages of a document that a query is about first (system 25, MM-R5).

A page shows its title in Pillow's built-in bitmap font, lines of grey text and a small chart. The
query is a title; one or more pages bear it, others share one of its two words, so that a glance at
half of the title does not do.

Held out: titles, as pairs of topic and year (a fixed quarter): queries of the two splits differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from embodied_rl.envs.vqa import answers
from embodied_rl.envs.vqa.common import Image, Split, Task, check_range, draw_for_split, stream
from embodied_rl.types import Question

TOPICS = ("RAIN", "SALES", "STAFF", "COSTS", "TRADE", "ENERGY", "WATER", "ROADS")
YEARS = tuple(str(year) for year in range(1998, 2010))


@dataclass(frozen=True, kw_only=True)
class PageRerankOptions:
    """Knobs of ``page_rerank``.

    Attributes:
        num_pages: candidates, one picture each.
        max_positives: pages that bear the asked title, drawn from 1 to this.
        hard_share: share of the other pages with the same topic or year as the query.
        width: of a page in pixels.
        height: of a page in pixels.
    """

    num_pages: int = 10
    max_positives: int = 1
    hard_share: float = 0.5
    width: int = 80
    height: int = 64

    def __post_init__(self) -> None:
        check_range("num_pages", self.num_pages, 2, 50)
        check_range("max_positives", self.max_positives, 1, self.num_pages - 1)
        check_range("hard_share", self.hard_share, 0.0, 1.0)
        check_range("width", self.width, 80, 1024)
        check_range("height", self.height, 48, 1024)


def _title(rng: Random) -> str:
    return f"{rng.choice(TOPICS)} {rng.choice(YEARS)}"


def _other_title(rng: Random, query: str, hard_share: float) -> str:
    """A title that is not the query; with probability ``hard_share`` one word is the same."""
    topic, year = query.split()
    while True:
        title = _title(rng)
        if rng.random() < hard_share:
            words = title.split()
            title = f"{topic} {words[1]}" if rng.random() < 0.5 else f"{words[0]} {year}"
        if title != query:
            return title


def _draw_page(title: str, bars: tuple[int, ...], options: PageRerankOptions) -> Image:
    page = PILImage.new("RGB", (options.width, options.height), (252, 250, 245))
    pen = ImageDraw.Draw(page)
    pen.fontmode = "1"
    # The first letter of a text loses its left edge: here that is a blank, six pixels wide.
    pen.text((-2, 3), f" {title}", fill=(0, 0, 0), font=ImageFont.load_default_imagefont())
    for line in range(2):
        pen.line((4, 19 + 5 * line, options.width - 5 - 14 * line, 19 + 5 * line), fill=(180,) * 3)
    for index, bar in enumerate(bars):
        left = 6 + 11 * index
        pen.rectangle(
            (left, options.height - 5 - 2 * bar, left + 7, options.height - 5), (70, 110, 170)
        )
    return np.array(page)


def make_question(
    options: PageRerankOptions, *, seed: int, split: Split, draw: bool = True
) -> Question:
    """Rank the pages for a title. ``data``: positives, candidates (numbers from 1), titles."""
    rng = stream("page_rerank", options, seed=seed, split=split)
    query = draw_for_split(rng, split, _title)
    count = options.num_pages
    positives = sorted(rng.sample(range(1, count + 1), rng.randint(1, options.max_positives)))
    titles = [
        query if page in positives else _other_title(rng, query, options.hard_share)
        for page in range(1, count + 1)
    ]
    bars = [tuple(rng.randint(1, 12) for _ in range(5)) for _ in titles]
    rest = [page for page in range(1, count + 1) if page not in positives]
    pages = zip(titles, bars, strict=True)
    return Question(
        task="page_rerank",
        prompt=(
            f"These are pages 1 to {count}. Which are about {query}? Answer with all {count} page "
            "numbers, separated by commas, best first."
        ),
        answer=", ".join(map(str, positives + rest)),
        images=tuple(_draw_page(*page, options) for page in pages if draw),
        data={
            "query": query,
            "positives": positives,
            "candidates": tuple(range(1, count + 1)),
            "titles": titles,
            "key": repr((query, titles, bars)),
            "brief": query,
            "reward": "rerank_rrk3",
        },
    )


def solve(question: Question) -> str:
    """The ranking from the pixels: how far each page's head is from the query printed anew."""
    options = PageRerankOptions(width=question.images[0].shape[1])
    wanted = _draw_page(question.data["query"], (), options)[:16]
    errors = [np.abs(page[:16].astype(int) - wanted).sum() for page in question.images]
    order = sorted(range(len(errors)), key=lambda index: (errors[index], index))
    return ", ".join(str(index + 1) for index in order)


def guess(question: Question, rng: Random) -> str:
    """A random order."""
    count = len(question.data["candidates"])
    return ", ".join(map(str, rng.sample(range(1, count + 1), count)))


PAGE_RERANK = Task(
    options=PageRerankOptions,
    make_question=make_question,
    solve=solve,
    guess=guess,
    check=answers.positives_first,
)
