"""Names to components: one table per kind, filled lazily.

A component is a function or a class whose options are its keyword arguments (or the fields of its
``Config`` dataclass). Built-in components are the lines of ``BUILTIN`` below; third parties enter
through entry points of the group ``embodied_rl.<kind>``; tests and notebooks use
``register(kind, name)`` as a decorator. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any

BUILTIN: dict[str, dict[str, str]] = {
    "envs": {
        "maniskill": "embodied_rl.envs.maniskill:make",
        "metaworld": "embodied_rl.envs.metaworld:make",
        "atari": "embodied_rl.envs.atari:make",
        "envpool": "embodied_rl.envs.envpool:make",
        "gymnasium": "embodied_rl.envs.gymnasium:make",
        "libero": "embodied_rl.envs.libero.env:make",
        "vqa": "embodied_rl.envs.vqa.env:make",
        "mixture": "embodied_rl.envs.mixture:make",
        "identity": "embodied_rl.envs.toy:make_identity",
        "reach": "embodied_rl.envs.toy:make_reach",
    },
    "experts": {
        "libero": "embodied_rl.envs.libero.expert:experts",
        "maniskill": "embodied_rl.envs.maniskill.expert:experts",
        "metaworld": "embodied_rl.envs.metaworld:experts",
        "reach": "embodied_rl.envs.toy:reach_experts",
    },
    # Under an environment's name: (its options, mean return) -> further scores that `eval` reports.
    "scores": {"atari": "embodied_rl.envs.atari_scores:evaluation_scores"},
    "policies": {
        "gaussian_mlp": "embodied_rl.policies.gaussian_mlp:GaussianMLP",
        "categorical_mlp": "embodied_rl.policies.categorical:CategoricalMLP",
        "categorical_cnn": "embodied_rl.policies.categorical:CategoricalCNN",
        "flow_mlp": "embodied_rl.policies.flow_mlp:FlowMLP",
        "flow_transformer": "embodied_rl.policies.flow_transformer:FlowTransformer",
        "joint": "embodied_rl.policies.joint:Joint",
        "masked_diffusion": "embodied_rl.policies.masked_diffusion:MaskedDiffusion",
        "picture_generator": "embodied_rl.policies.picture_generator:PictureGenerator",
        "sb3": "embodied_rl.policies.sb3:SB3Policy",
        "string_generator": "embodied_rl.policies.string_generator:StringGenerator",
        "vlm": "embodied_rl.policies.vlm.policy:VLM",
    },
    "algorithms": {
        "ppo": "embodied_rl.algorithms.ppo:PPO",
        "grpo": "embodied_rl.algorithms.grpo:GRPO",
        "sft": "embodied_rl.algorithms.sft:SFT",
    },
    "advantages": {
        "gae": "embodied_rl.advantages.gae:gae",
        "monte_carlo": "embodied_rl.advantages.monte_carlo:monte_carlo",
        "group_relative": "embodied_rl.advantages.group_relative:group_relative",
        "rloo": "embodied_rl.advantages.group_relative:rloo",
        "reinforce_pp": "embodied_rl.advantages.reinforce_pp:reinforce_pp",
    },
    "losses": {
        "clipped_surrogate": "embodied_rl.losses.policy:clipped_surrogate",
        "value": "embodied_rl.losses.value:value_loss",
        "kl": "embodied_rl.losses.kl:kl_penalty",
        "entropy": "embodied_rl.losses.entropy:entropy_bonus",
        "flow_matching": "embodied_rl.losses.flow_matching:flow_matching_loss",
    },
    # (response, question) -> float
    "rewards": {
        "chart_text_struct": "embodied_rl.rewards.chart:chart_text_struct",
        "chart_visual": "embodied_rl.rewards.chart:chart_visual",
        "consistency_gate": "embodied_rl.rewards.judge:consistency_gate",
        "exec_geometry": "embodied_rl.rewards.solid:exec_geometry",
        "exec_ok": "embodied_rl.rewards.execute:exec_ok",
        "judge_score": "embodied_rl.rewards.judge:judge_score",
        "box_iou": "embodied_rl.rewards.boxes:box_iou",
        "hungarian_boxes": "embodied_rl.rewards.boxes:hungarian_boxes",
        "roi_iou": "embodied_rl.rewards.boxes:roi_iou",
        "union_box_iou": "embodied_rl.rewards.boxes:union_box_iou",
        "weighted_precision_recall": "embodied_rl.rewards.boxes:weighted_precision_recall",
        "math_equivalence": "embodied_rl.rewards.equivalence:math_equivalence",
        "accuracy_and_format": "embodied_rl.rewards.format:accuracy_and_format",
        "format_tags": "embodied_rl.rewards.format:format_tags",
        "hard_format_result": "embodied_rl.rewards.format:hard_format_result",
        "ngram_repetition": "embodied_rl.rewards.length:ngram_repetition",
        "nonrepeat": "embodied_rl.rewards.length:nonrepeat",
        "overlong": "embodied_rl.rewards.length:overlong",
        "chart_relaxed": "embodied_rl.rewards.match:chart_relaxed",
        "exact_label": "embodied_rl.rewards.match:exact_label",
        "match": "embodied_rl.rewards.match:match",
        "no_think_equal": "embodied_rl.rewards.match:no_think_equal",
        "numeric": "embodied_rl.rewards.match:numeric",
        "jigsaw_fraction": "embodied_rl.rewards.order:jigsaw_fraction",
        "list_format": "embodied_rl.rewards.order:list_format",
        "rerank_rrk3": "embodied_rl.rewards.order:rerank_rrk3",
        "bmas": "embodied_rl.rewards.overlap:bmas",
        "caption_overlap": "embodied_rl.rewards.overlap:caption_overlap",
        "embedding_rank_gap": "embodied_rl.rewards.overlap:embedding_rank_gap",
        "perception_checklist": "embodied_rl.rewards.overlap:perception_checklist",
        "rephrase_similarity": "embodied_rl.rewards.overlap:rephrase_similarity",
        "ts_composite": "embodied_rl.rewards.overlap:ts_composite",
        "visual_fact_coverage": "embodied_rl.rewards.overlap:visual_fact_coverage",
        "affordance_hungarian": "embodied_rl.rewards.points:affordance_hungarian",
        "point_match": "embodied_rl.rewards.points:point_match",
        "calibration_log": "embodied_rl.rewards.reflection:calibration_log",
        "reflection_length": "embodied_rl.rewards.reflection:reflection_length",
        "reflection_transition": "embodied_rl.rewards.reflection:reflection_transition",
        "tiou": "embodied_rl.rewards.spans:tiou",
        "tiou_scaled": "embodied_rl.rewards.spans:tiou_scaled",
        "gated_tool_use": "embodied_rl.rewards.tools:gated_tool_use",
        "transformation_partial": "embodied_rl.rewards.transformation:transformation_partial",
    },
    # (responses, question, scores=) -> list of floats, one per response to the same question
    "group_rewards": {
        "cosine_length": "embodied_rl.rewards.group:cosine_length",
        "dylr": "embodied_rl.rewards.group:dylr",
        "shortest_correct": "embodied_rl.rewards.group:shortest_correct",
        "variance_look": "embodied_rl.rewards.group:variance_look",
    },
    "samplers": {
        "uniform": "embodied_rl.samplers.uniform:Uniform",
        "vade_thompson": "embodied_rl.samplers.vade_thompson:VadeThompson",
        "vas_mixed": "embodied_rl.samplers.vas_mixed:VasMixed",
        "success_window": "embodied_rl.samplers.success_window:SuccessWindow",
        "difficulty_ladder": "embodied_rl.samplers.difficulty_ladder:DifficultyLadder",
    },
    "recipes": {},
}
KINDS = tuple(BUILTIN)


class RegistryError(ValueError):
    """An unknown or duplicate name, or options that a component does not take."""


def near_names(name: str, names: Iterable[str]) -> str:
    """``; did you mean 'a' or 'b'?``, or an empty string when nothing is close."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


class Registry:
    """The components of one kind: name -> object, ``"module:attr"`` or entry point."""

    def __init__(self, kind: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self._targets: dict[str, Any] = dict(builtin)
        self._entry_points_loaded = False

    def add(self, name: str, target: Any) -> None:
        """Register ``target`` (an object or ``"module:attr"``) under a name that is still free.

        Raises:
            RegistryError: the name is taken.
        """
        if name in self._targets:
            raise RegistryError(f"{self.kind}: {name!r} is registered already, choose another name")
        self._targets[name] = target

    def names(self) -> list[str]:
        """Every registered name, sorted."""
        self._load_entry_points()
        return sorted(self._targets)

    def get(self, name: str) -> Any:
        """The component, imported on first use.

        Raises:
            RegistryError: no such name; the message lists near ones.
        """
        self._load_entry_points()
        if name not in self._targets:
            known = ", ".join(self.names()) if len(self._targets) <= 12 else f"{len(self._targets)}"
            raise RegistryError(
                f"unknown {self.kind} name {name!r}{near_names(name, self._targets)} "
                f"(known: {known}; see `embodied-rl list {self.kind}`)"
            )
        target = self._targets[name]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = getattr(importlib.import_module(module), attribute)
            self._targets[name] = target
        return target

    def _load_entry_points(self) -> None:
        if self._entry_points_loaded:
            return
        self._entry_points_loaded = True
        if self.kind == "recipes":
            from embodied_rl import configs

            for name, recipe in configs.builtin_recipes().items():
                self.add(name, recipe)
        for point in entry_points(group=f"embodied_rl.{self.kind}"):
            self.add(point.name, point.value)


_REGISTRIES = {kind: Registry(kind, names) for kind, names in BUILTIN.items()}


def registry(kind: str) -> Registry:
    """The registry of a kind, one of ``KINDS``."""
    if kind not in _REGISTRIES:
        raise RegistryError(f"unknown kind {kind!r}{near_names(kind, KINDS)}; kinds: {KINDS}")
    return _REGISTRIES[kind]


def register(kind: str, name: str) -> Callable[[Any], Any]:
    """Decorator that registers a function or class of one's own under ``name``."""

    def add(target: Any) -> Any:
        registry(kind).add(name, target)
        return target

    return add


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a component: its annotation and default (``inspect.Parameter.empty``: none)."""

    annotation: Any
    default: Any


def options_of(target: Any) -> dict[str, Option]:
    """The options a component takes: fields of its ``Config``, else its keyword-only arguments."""
    config = getattr(target, "Config", None)
    if config is not None and dataclasses.is_dataclass(config):
        hints = typing.get_type_hints(config)
        return {
            field.name: Option(hints[field.name], _field_default(field))
            for field in dataclasses.fields(config)
        }
    function = target.__init__ if inspect.isclass(target) else target
    hints = typing.get_type_hints(function)
    return {
        parameter.name: Option(hints.get(parameter.name, Any), parameter.default)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _field_default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty
