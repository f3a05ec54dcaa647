"""Programs of a whole batch at once, each of them once: what rewards that run code share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

from embodied_rl.rewards import parse
from embodied_rl.types import Question

T = TypeVar("T")
SIZE = 1024
"""Results kept, so that a reference runs once and several rewards share a program."""


class Remembered(Generic[T]):
    """``run(codes, **options) -> [N]`` that remembers the ``SIZE`` results used last.

    Args:
        run: makes what depends on a program and on the options, which can be hashed.
    """

    def __init__(self, run: Callable[..., list[T]]) -> None:
        self.run = run
        self.kept: dict[Hashable, T] = {}

    def __call__(self, codes: Sequence[str], **options: Any) -> list[T]:
        """``[N]`` results in the order of ``codes``."""
        keys = [(code, *sorted(options.items())) for code in codes]
        pairs = dict(zip(keys, codes, strict=True))
        missing = {key: code for key, code in pairs.items() if key not in self.kept}
        made = self.run(list(missing.values()), **options) if missing else []
        self.kept |= dict(zip(missing, made, strict=True))
        for key in keys:
            self.kept[key] = self.kept.pop(key)  # now the last one
        found = [self.kept[key] for key in keys]
        for key in list(self.kept)[:-SIZE]:
            del self.kept[key]
        return found


def programs(responses: Sequence[str], questions: Sequence[Question] = ()) -> list[str]:
    """The programs of responses, and ``data["code"]`` of questions, where there are any."""
    said = [parse.program(response) for response in responses]
    true = [question.data.get("code") for question in questions]
    return [code for code in (*true, *said) if isinstance(code, str)]
