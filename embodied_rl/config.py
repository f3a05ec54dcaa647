"""Typed configuration: frozen dataclasses, a command-line overlay, and a YAML form that runs again.

A run is one ``TrainConfig``. Recipes are Python functions that return one; ``--key value`` pairs
overlay it; ``to_yaml``/``from_yaml`` keep the resolved result in the run folder. All three go
through the same decoder, so an unknown key, a key of a component that is not selected, or a value
of the wrong type is one sentence that names near keys.

A ``Component`` names a registered function or class and its options. In YAML it is one mapping
(``{name: gae, gamma: 0.99}``), on the command line ``--advantage.name gae --advantage.gamma 0.99``.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from embodied_rl.registry import Option, near_names, options_of, registry


class ConfigError(ValueError):
    """A configuration that cannot run; the message says what to change."""


@dataclass(frozen=True)
class Component:
    """A registered component and the options that differ from its defaults."""

    kind: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def resolved(self) -> dict[str, Any]:
        """Every option with its value, defaults filled in.

        Raises:
            ConfigError: unknown option (near ones are named) or a missing required one.
        """
        known = component_options(self.kind, self.name)
        for key in self.options:
            if key not in known:
                raise ConfigError(
                    f"{self.kind} {self.name!r} has no option {key!r}{near_names(key, known)} "
                    f"(options: {', '.join(known)})"
                )
        values = {}
        for key, option in known.items():
            value = self.options.get(key, option.default)
            if value is inspect.Parameter.empty:
                continue
            values[key] = value
        return values

    def replace(self, **options: Any) -> Component:
        """The same component with some options changed."""
        return Component(self.kind, self.name, {**self.options, **options})


RESERVED: dict[str, set[str]] = {
    "envs": {
        "num_envs",
        "seed",
        "chunk_length",
        "max_episode_steps",
        "autoreset",
        "group_size",
        "device",
        "num_threads",
        "episode_seeds",
    },
    "samplers": {"num_tasks", "seed"},
}
"""Arguments that the platform itself passes to a component, by kind; no options of a user."""


def component_options(kind: str, name: str) -> dict[str, Option]:
    """The options of a registered component that a configuration may set."""
    reserved = RESERVED.get(kind, set())
    found = options_of(registry(kind).get(name))
    return {key: option for key, option in found.items() if key not in reserved}


def component(kind: str, name: str, **options: Any) -> Component:
    """Shorthand used by recipes."""
    return Component(kind, name, options)


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Which environments are stepped, and how.

    Attributes:
        simulator: registered environment and its own options.
        num_envs: N, environments stepped together.
        chunk_length: H, actions executed open loop per decision.
        max_episode_steps: time limit in simulator steps; 0 keeps the simulator's own.
        group_size: G consecutive rows that share task and initial state (GRPO).
        observations: names of the observations that the policy sees; empty: all of them.
        instruction_embedding: adds ``obs["instruction"]``: ``none``, ``hashed`` or ``minilm``.
        normalize_obs: running standardisation of vector observations (checkpointed); policies
            that imitate first standardise with dataset statistics instead.
        num_threads: simulator threads; 0 means all cores.
        num_shards: S, parts of the N environments that take turns in training: the policy acts
            for one while the others simulate. Pays where acting takes long and does not want the
            simulators' cores.
    """

    simulator: Component
    num_envs: int = 64
    chunk_length: int = 1
    max_episode_steps: int = 0
    group_size: int = 1
    observations: tuple[str, ...] = ()
    instruction_embedding: Literal["none", "hashed", "minilm"] = "none"
    normalize_obs: bool = False
    num_threads: int = 0
    num_shards: int = 1


@dataclass(frozen=True, kw_only=True)
class ImitationConfig:
    """Few-shot imitation before (or instead of) reinforcement learning.

    Attributes:
        episodes_per_task: expert episodes to collect when ``dataset`` is empty.
        dataset: folder in LeRobotDataset v3.0 layout to imitate instead of collecting.
        num_steps: gradient steps.
        batch_size: chunks per gradient step.
        learning_rate: AdamW learning rate, cosine decay to zero.
        weight_decay: AdamW weight decay.
        action_noise: std of Gaussian noise the expert's executed actions receive (DART), which
            shows recoveries; the stored label is the clean action.
    """

    episodes_per_task: int = 10
    dataset: str = ""
    num_steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    action_noise: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Honest evaluation: fresh environments from a manifest of (task, seed) pairs.

    Attributes:
        episodes: episodes per evaluation.
        manifest: ``tune`` seeds for looking while developing, ``test`` seeds for reporting; the two
            never overlap each other nor the training seeds.
        every: iterations between evaluations during training; 0 evaluates after imitation and at
            the end only.
        modes: action selection, ``greedy`` and/or ``sampled``.
        env_options: options of the simulator that evaluation sets otherwise than training, e.g.
            ``{clip_rewards: false}``.
    """

    episodes: int = 200
    manifest: Literal["tune", "test"] = "tune"
    every: int = 0
    modes: tuple[Literal["greedy", "sampled"], ...] = ("greedy", "sampled")
    env_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept.

    Attributes:
        every: iterations between checkpoints; the last iteration is always saved.
        keep_last: newest checkpoints kept beside ``best``.
    """

    every: int = 10
    keep_last: int = 2


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run.

    Attributes:
        name: recipe name; the run folder is ``<runs>/<name>/<time>-seed<seed>``.
        env: environments.
        policy: registered policy.
        algorithm: registered algorithm that updates the policy.
        advantage: registered advantage function.
        sampler: registered task sampler (which task next).
        total_env_steps: simulator steps of reinforcement learning; 0 stops after imitation.
        num_steps: T, decisions per environment and iteration; 0 rolls out whole episodes: every
            environment starts afresh, plays one episode and then waits for the others.
        imitation: few-shot imitation first, or None to start from random weights or ``init_from``.
        init_from: checkpoint folder whose policy weights the run starts from.
        normalize_rewards: divide rewards by the running std of the discounted return.
        normalize_values: the critic predicts standardised returns (running moments).
        max_refills: further rollouts an iteration may make to replace groups that carry no
            gradient (dynamic sampling, DAPO); needs a group-based advantage.
        asynchronous: update with the previous rollout while the simulators are stepping; the
            staleness is logged as ``train/policy_lag``.
        evaluation, checkpoint: see their classes.
        seed: the one seed everything derives from.
        runs: folder that holds run folders.
        device: where the policy, the rollouts and the observations live, e.g. ``cuda``; simulators
            that run on the processor copy their observations there.
        num_threads: torch threads; 0 leaves them as they are (one where the command line starts the
            run, unless OMP_NUM_THREADS says otherwise).
    """

    name: str
    env: EnvConfig
    policy: Component
    algorithm: Component
    advantage: Component = Component("advantages", "gae")
    sampler: Component = Component("samplers", "uniform")
    total_env_steps: int = 500_000
    num_steps: int = 0
    imitation: ImitationConfig | None = None
    init_from: str = ""
    normalize_rewards: bool = False
    normalize_values: bool = False
    max_refills: int = 0
    asynchronous: bool = False
    evaluation: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    seed: int = 0
    runs: str = "runs"
    device: str = "cpu"
    num_threads: int = 0


def evaluation_env(config: TrainConfig) -> EnvConfig:
    """The environments of a run as evaluation makes them: with ``evaluation.env_options``."""
    simulator = config.env.simulator.replace(**config.evaluation.env_options)
    return dataclasses.replace(config.env, simulator=simulator)


# --- plain form ------------------------------------------------------------------------------


def to_plain(value: Any) -> Any:
    """Dataclasses and components as nested dicts, lists and scalars, defaults filled in."""
    if isinstance(value, Component):
        return {"name": value.name} | {k: to_plain(v) for k, v in value.resolved().items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def to_yaml(config: TrainConfig) -> str:
    """The resolved configuration as YAML that ``from_yaml`` reads back."""
    import yaml

    return yaml.safe_dump(to_plain(config), sort_keys=False, width=100)


def from_yaml(text: str) -> TrainConfig:
    """Read a configuration written by ``to_yaml``.

    Raises:
        ConfigError: not a configuration, unknown or missing keys, wrong types.
    """
    import yaml

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the configuration is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError("the configuration must be a YAML mapping such as a run's config.yaml")
    config = _decode_dataclass(TrainConfig, data, None, "")
    check(config)
    return config


def overlay(config: TrainConfig, arguments: Sequence[str]) -> TrainConfig:
    """Apply ``--a.b value`` (or ``--a.b=value``) pairs; dashes and underscores are the same.

    Raises:
        ConfigError: unknown key, missing or malformed value.
    """
    tree: dict[str, Any] = {}
    for path, value in _pairs(arguments):
        node = tree
        *parents, leaf = path.split(".")
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--{path} sets a part of a key that is set as a whole")
        node[leaf] = value
    config = _decode_dataclass(TrainConfig, tree, config, "") if tree else config
    check(config)
    return config


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    pairs, waiting = [], list(arguments)
    while waiting:
        key = waiting.pop(0)
        if not key.startswith("--") or len(key) < 3:
            raise ConfigError(f"expected --key value, got {key!r}")
        key, equals, value = key[2:].partition("=")
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                raise ConfigError(f"--{key} needs a value, e.g. --{key} 1")
            value = waiting.pop(0)
        pairs.append((key.replace("-", "_"), value))
    return pairs


# --- decoding --------------------------------------------------------------------------------

_MISSING: Any = object()


def _decode(hint: Any, data: Any, default: Any, path: str) -> Any:
    """``data`` (text from the command line, plain data from YAML) as a value of type ``hint``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Component or isinstance(default, Component):
        return _decode_component(data, default, path)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, data, default, path)
    if dataclasses.is_dataclass(hint):
        if not isinstance(data, Mapping):
            raise ConfigError(f"{path} has parts, set one of them: {_field_names(hint)}")
        return _decode_dataclass(typing.cast(type, hint), data, default, path)
    if origin is Literal:
        return _decode_literal(arguments, data, path)
    if origin in (tuple, list, Sequence, typing.get_origin(Sequence[int])):
        return _decode_sequence(arguments, data, path)
    if origin in (dict, Mapping, typing.get_origin(Mapping[str, int])):
        return _decode_mapping(data, path)
    return _decode_scalar(hint, data, path)


def _decode_union(arguments: tuple[Any, ...], data: Any, default: Any, path: str) -> Any:
    if data is None or (isinstance(data, str) and data.lower() in ("none", "null")):
        if type(None) in arguments:
            return None
        raise ConfigError(f"{path} cannot be none")
    errors = []
    # A text with commas or braces is a list or a mapping where one is possible, and else a text.
    lists_first = isinstance(data, str) and ("," in data or data.startswith("{"))
    for option in sorted(arguments, key=lambda a: (a is str) == lists_first):
        if option is type(None):
            continue
        try:
            return _decode(option, data, default, path)
        except ConfigError as error:
            errors.append(str(error))
    raise ConfigError(errors[0])


def _decode_literal(choices: tuple[Any, ...], data: Any, path: str) -> Any:
    for choice in choices:
        if data == choice or (isinstance(data, str) and data == str(choice)):
            return choice
    raise ConfigError(f"{path}={data!r} is not one of {', '.join(map(str, choices))}")


def _decode_sequence(arguments: tuple[Any, ...], data: Any, path: str) -> tuple[Any, ...]:
    if isinstance(data, str):
        data = [part.strip() for part in data.strip("[]()").split(",") if part.strip()]
    if not isinstance(data, list | tuple):
        raise ConfigError(f"{path} takes a list such as 1,2,3, got {data!r}")
    if (len(arguments) == 2 and arguments[1] is Ellipsis) or len(arguments) == 1:
        return tuple(_decode(arguments[0], item, None, path) for item in data)
    if len(arguments) != len(data):
        raise ConfigError(f"{path} takes {len(arguments)} values, got {len(data)}")
    return tuple(
        _decode(hint, item, None, path) for hint, item in zip(arguments, data, strict=True)
    )


def _decode_mapping(data: Any, path: str) -> dict[str, Any]:
    value = _decode_scalar_yaml(data, path)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} takes a mapping such as '{{a: 1, b: 2}}', got {data!r}")
    return dict(value)


def _decode_scalar_yaml(data: Any, path: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(data) if isinstance(data, str) else data
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is no YAML: {reason}") from error


def _decode_scalar(hint: Any, data: Any, path: str) -> Any:
    if hint is Any:
        return _decode_scalar_yaml(data, path)
    if hint is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if isinstance(data, bool):
            return data
        if str(data).lower() in words:
            return words[str(data).lower()]
        raise ConfigError(f"{path} takes true or false, got {data!r}")
    if hint in (int, float):
        try:
            number = float(str(data).replace("_", ""))
        except ValueError as error:
            raise ConfigError(f"{path} takes a number, got {data!r}") from error
        if hint is int and number != int(number):
            raise ConfigError(f"{path} takes a whole number, got {data!r}")
        return hint(number)
    if hint is str and isinstance(data, str):
        return data
    raise ConfigError(f"{path} takes {getattr(hint, '__name__', hint)}, got {data!r}")


def _field_names(cls: Any) -> str:
    return ", ".join(f.name for f in dataclasses.fields(cls))


def _decode_dataclass(cls: type, data: Mapping[str, Any], default: Any, path: str) -> Any:
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, item in data.items():
        where = f"{path}.{key}" if path else key
        if key not in fields:
            raise ConfigError(
                f"unknown key {where!r}{near_names(key, fields)} "
                f"({path or 'the run'} has: {', '.join(fields)})"
            )
        present = getattr(default, key) if default is not None else _default_of(fields[key])
        values[key] = _decode(hints[key], item, None if present is _MISSING else present, where)
    if default is not None:
        return _construct(dataclasses.replace, path, default, **values)
    missing = [n for n, f in fields.items() if n not in values and _default_of(f) is _MISSING]
    if missing:
        raise ConfigError(f"missing key {path + '.' if path else ''}{missing[0]}")
    return _construct(cls, path, **values)


def _construct(function: Any, path: str, *args: Any, **values: Any) -> Any:
    try:
        return function(*args, **values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def _default_of(f: dataclasses.Field[Any]) -> Any:
    if f.default is not dataclasses.MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else _MISSING


COMPONENT_KINDS = {
    "simulator": "envs",
    "policy": "policies",
    "algorithm": "algorithms",
    "advantage": "advantages",
    "sampler": "samplers",
}
"""Registry kind of each configuration key that holds a component."""


def _decode_component(data: Any, default: Component | None, path: str) -> Component:
    key = path.rpartition(".")[2]
    kind = default.kind if default is not None else COMPONENT_KINDS[key]
    if isinstance(data, str):
        data = {"name": data}
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path} takes a component name or {{name: ..., options}}, got {data!r}")
    name = data.get("name", default.name if default is not None else None)
    if name is None:
        raise ConfigError(f"{path} needs a name, one of {', '.join(registry(kind).names())}")
    try:
        known = component_options(kind, name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    # Options of the recipe's component carry over only while the component stays the same one.
    options = dict(default.options) if default is not None and default.name == name else {}
    for option, item in data.items():
        if option == "name":
            continue
        if option not in known:
            raise ConfigError(
                f"{path}.{option} is not an option of {kind} {name!r}{near_names(option, known)} "
                f"(options: {', '.join(known)})"
            )
        present = options.get(option, known[option].default)
        present = None if present is inspect.Parameter.empty else present
        options[option] = _decode(known[option].annotation, item, present, f"{path}.{option}")
    return Component(kind, name, options)


def _anneals(policy: Component) -> bool:
    flow = policy.options.get("flow")
    return flow is not None and flow.anneal_to != 1.0


# --- cross-field checks ----------------------------------------------------------------------


def check(config: TrainConfig) -> None:
    """Refuse combinations that cannot work; every message names the value that would.

    Raises:
        ConfigError: the first problem found.
    """
    env, algorithm = config.env, config.algorithm
    simulator = evaluation_env(config).simulator
    for part in (simulator, config.policy, algorithm, config.advantage, config.sampler):
        part.resolved()
    env.simulator.resolved()
    if env.num_envs < 1 or env.chunk_length < 1 or env.group_size < 1:
        raise ConfigError("env.num_envs, env.chunk_length and env.group_size must be 1 or more")
    if env.num_envs % env.group_size:
        near = max(env.num_envs // env.group_size, 1) * env.group_size
        raise ConfigError(
            f"env.num_envs={env.num_envs} is no multiple of env.group_size={env.group_size}: "
            f"set env.num_envs to {near}"
        )
    rows = env.num_shards * env.group_size
    if env.num_shards < 1 or env.num_envs % rows:
        raise ConfigError(
            f"env.num_shards={env.num_shards} does not share out env.num_envs={env.num_envs} in "
            f"whole groups: set env.num_envs to a multiple of {max(rows, env.group_size)}"
        )
    if env.num_shards > 1 and env.normalize_obs:
        raise ConfigError(
            "env.normalize_obs keeps one set of statistics and shards are stepped apart: set "
            "env.num_shards to 1"
        )
    drops_groups = config.advantage.name in ("group_relative", "rloo")
    group_based = drops_groups or config.advantage.options.get("baseline") == "group"
    if group_based and env.group_size == 1:
        raise ConfigError(
            f"advantage {config.advantage.name!r} compares trajectories of a group: set "
            "env.group_size to 8"
        )
    if group_based and config.num_steps:
        raise ConfigError(
            f"advantage {config.advantage.name!r} needs whole episodes: set num_steps to 0"
        )
    if config.max_refills and not drops_groups:
        raise ConfigError(
            f"max_refills is unused with advantage {config.advantage.name!r}: set it to 0, or the "
            "advantage to group_relative"
        )
    if config.env.group_size > 1 and not group_based:
        raise ConfigError(
            f"env.group_size={env.group_size} is unused with advantage {config.advantage.name!r}: "
            "set it to 1, or the advantage to group_relative"
        )
    if config.asynchronous and config.num_steps == 0:
        raise ConfigError("asynchronous overlaps fixed-length rollouts: set num_steps to 32")
    if config.num_steps and config.sampler.name != "uniform":
        raise ConfigError(
            f"sampler {config.sampler.name!r} assigns a task per episode: set num_steps to 0"
        )
    if algorithm.name == "sft":
        raise ConfigError(
            "algorithm 'sft' is the imitation stage, which runs first: set its options under "
            "imitation, keep algorithm.name=ppo and set total_env_steps to 0"
        )
    if config.asynchronous and _anneals(config.policy):
        raise ConfigError(
            "asynchronous updates re-score with noise of the next iteration: set "
            "policy.flow.anneal_to to 1"
        )
    if config.imitation is not None and config.init_from:
        raise ConfigError("imitation and init_from both set the start weights: drop one of them")
