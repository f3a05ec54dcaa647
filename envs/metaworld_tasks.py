"""The 50 tasks of Meta-World v3: names, instructions, benchmark subsets.

Names are those of the benchmark (``pick-place-v3``). Subsets follow T. Yu et al., "Meta-World: A
Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning", CoRL 2019: MT10 and MT50.
"""

from __future__ import annotations

from collections.abc import Sequence

from embodied_rl.registry import near_names

INSTRUCTIONS: dict[str, str] = {
    "assembly-v3": "pick up the ring by its handle and put it over the peg",
    "basketball-v3": "pick up the ball and drop it through the hoop",
    "bin-picking-v3": "take the block out of the first bin and put it into the second bin",
    "box-close-v3": "pick up the lid and put it on the box",
    "button-press-topdown-v3": "press the button on top of the box from above",
    "button-press-topdown-wall-v3": "reach over the wall and press the button from above",
    "button-press-v3": "press the button on the front of the box",
    "button-press-wall-v3": "go around the wall and press the button on the front of the box",
    "coffee-button-v3": "press the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine to the goal",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial by half a turn",
    "disassemble-v3": "grasp the ring by its handle and lift it off the peg",
    "door-close-v3": "close the door of the safe",
    "door-lock-v3": "turn the lock to lock the door",
    "door-open-v3": "open the door of the safe by its handle",
    "door-unlock-v3": "turn the lock to unlock the door",
    "drawer-close-v3": "push the drawer closed",
    "drawer-open-v3": "pull the drawer open by its handle",
    "faucet-close-v3": "turn the faucet handle clockwise to close it",
    "faucet-open-v3": "turn the faucet handle counter-clockwise to open it",
    "hammer-v3": "pick up the hammer and drive the nail into the box",
    "hand-insert-v3": "put the block into the hole in the table",
    "handle-press-side-v3": "press the handle on the side of the box down",
    "handle-press-v3": "press the handle in front of you down",
    "handle-pull-side-v3": "pull the handle on the side of the box up",
    "handle-pull-v3": "pull the handle in front of you up",
    "lever-pull-v3": "pull the lever up by a quarter turn",
    "peg-insert-side-v3": "pick up the peg and push it sideways into the hole",
    "peg-unplug-side-v3": "pull the peg sideways out of its socket",
    "pick-out-of-hole-v3": "lift the puck out of the hole and bring it to the goal",
    "pick-place-v3": "pick up the puck and place it at the goal",
    "pick-place-wall-v3": "pick up the puck, carry it over the wall and place it at the goal",
    "plate-slide-back-side-v3": "pull the plate sideways out of the cabinet",
    "plate-slide-back-v3": "pull the plate back out of the cabinet",
    "plate-slide-side-v3": "slide the plate sideways into the cabinet",
    "plate-slide-v3": "slide the plate forward into the cabinet",
    "push-back-v3": "pull the block back to the goal",
    "push-v3": "push the puck to the goal",
    "push-wall-v3": "push the puck around the wall to the goal",
    "reach-v3": "move the gripper to the goal",
    "reach-wall-v3": "move the gripper over the wall to the goal",
    "shelf-place-v3": "pick up the block and put it on the shelf",
    "soccer-v3": "push the ball into the goal",
    "stick-pull-v3": "pick up the stick and pull the container with it",
    "stick-push-v3": "pick up the stick and push the container with it",
    "sweep-into-v3": "sweep the block into the hole",
    "sweep-v3": "sweep the block off the table",
    "window-close-v3": "slide the window closed",
    "window-open-v3": "slide the window open",
}
MT50: tuple[str, ...] = tuple(INSTRUCTIONS)
MT10: tuple[str, ...] = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)
TASK_SETS: dict[str, tuple[str, ...]] = {"mt10": MT10, "mt50": MT50}


def task_name(name: str) -> str:
    """The benchmark's name of a task written in any usual way.

    ``pick-place``, ``pick_place``, ``pick-place-v3``, ``PickPlace-v3`` are all ``pick-place-v3``.

    Raises:
        ValueError: no such task; the message lists near names.
    """
    words = "".join(f"-{c.lower()}" if c.isupper() else c for c in name)
    words = words.replace("_", "-").replace("/", "-").strip("-").removeprefix("meta-world-")
    candidate = f"{words.removesuffix('-v3')}-v3".replace("--", "-")
    if candidate not in INSTRUCTIONS:
        hint = near_names(candidate, INSTRUCTIONS)
        raise ValueError(f"Meta-World has no task {name!r}{hint} (50 tasks; or 'mt10', 'mt50')")
    return candidate


def expand_tasks(tasks: str | Sequence[str]) -> tuple[str, ...]:
    """Task names of a name, a subset (``"mt10"``, ``"mt50"``), or a sequence of either.

    Raises:
        ValueError: no tasks, a name that does not exist, or a task twice.
    """
    names: list[str] = []
    for name in (tasks,) if isinstance(tasks, str) else tasks:
        names.extend(TASK_SETS.get(name.lower(), ()) or (task_name(name),))
    if not names:
        raise ValueError("tasks is empty: give at least one, e.g. tasks=('pick-place-v3',)")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"tasks lists {twice[0]!r} twice: leave one out")
    return tuple(names)


def envpool_id(name: str) -> str:
    """The envpool id of a task: ``pick-place-v3`` -> ``MetaWorld/PickPlace-v3``."""
    stem = "".join(word.capitalize() for word in name.removesuffix("-v3").split("-"))
    return f"MetaWorld/{stem}-v3"
