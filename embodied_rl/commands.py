"""What each command of ``embodied-rl`` does. Imported once a command is chosen."""

from __future__ import annotations

import argparse
import errno
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embodied_rl.config import ConfigError, TrainConfig, from_yaml, overlay
from embodied_rl.registry import KINDS, registry

Command = Callable[[list[str]], int]
EXPERT = "expert"
"""What ``eval`` is given instead of a run for the scripted expert."""


def run(name: str, arguments: Sequence[str]) -> int:
    """Run a command; foreseeable failures become one sentence and a status that is not 0."""
    try:
        return COMMANDS[name](list(arguments))
    except KeyboardInterrupt:
        print("interrupted; the last complete checkpoint is kept", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError) as error:
        if type(error) is RuntimeError:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOENT):
            raise
        print(
            f"error: {error.strerror}: {error.filename or ''}; free space or choose another "
            "folder with --runs, what was written before is kept",
            file=sys.stderr,
        )
        return 1


def split_overlay(arguments: list[str], known: set[str]) -> tuple[list[str], list[str]]:
    """(arguments of the command itself, ``--key value`` pairs for the configuration)."""
    own, rest, waiting = [], [], list(arguments)
    while waiting:
        part = waiting.pop(0)
        if part.split("=")[0].startswith("--") and part.split("=")[0] not in known:
            rest.append(part)
            if "=" not in part and waiting:
                rest.append(waiting.pop(0))
        else:
            own.append(part)
    return own, rest


def recipe(name: str, overlays: Sequence[str] = ()) -> TrainConfig:
    """A recipe with command-line changes applied."""
    return overlay(registry("recipes").get(name)(), overlays)


def train_command(arguments: list[str]) -> int:
    """``train RECIPE | --config FILE | --resume RUN``; prints the run folder last."""
    parser = argparse.ArgumentParser(
        prog="embodied-rl train",
        description="Run a recipe. Any key of the configuration can be changed, e.g. "
        "--seed 3 --env.num-envs 32 --algorithm.num-epochs 4 (see `embodied-rl explain RECIPE`).",
    )
    parser.add_argument("recipe", nargs="?", help="name from `embodied-rl list recipes`")
    parser.add_argument("--config", help="a run's config.yaml instead of a recipe")
    parser.add_argument("--resume", help="run folder to continue from its newest checkpoint")
    parser.add_argument("--no-eval", action="store_true", help="skip the evaluations")
    own, rest = split_overlay(arguments, {"--config", "--resume", "--no-eval", "--help", "-h"})
    options = parser.parse_args(own)
    given = [value for value in (options.recipe, options.config, options.resume) if value]
    if len(given) != 1:
        raise ConfigError("give one of: a recipe name, --config FILE, --resume RUN")
    from embodied_rl.trainer import train

    folder = None
    if options.resume:
        folder = Path(options.resume)
        if not (folder / "config.yaml").is_file():
            raise ConfigError(f"{folder} is no run folder: it has no config.yaml")
        config = overlay(from_yaml((folder / "config.yaml").read_text()), rest)
    elif options.config:
        config = overlay(from_yaml(Path(options.config).read_text()), rest)
    else:
        config = recipe(options.recipe, rest)
    folder = train(config, folder=folder, resume=bool(options.resume), final=not options.no_eval)
    print(folder)
    return 0


def eval_command(arguments: list[str]) -> int:
    """``eval RUN``: success on the test manifest; ``--json`` prints one object last.

    A saved Stable-Baselines3 model, or the simulator's scripted expert, is evaluated on the
    environment of a recipe: ``eval model.zip --recipe cartpole_ppo [--key value]``,
    ``eval expert --recipe maniskill/stack_cube_sft``.
    """
    parser = argparse.ArgumentParser(prog="embodied-rl eval", description=eval_command.__doc__)
    parser.add_argument(
        "run", help="run folder, checkpoint folder, Stable-Baselines3 zip, or expert"
    )
    parser.add_argument("--recipe", help="environment of a zip or expert: a recipe or config.yaml")
    parser.add_argument(
        "--checkpoint", default="", help="best, sft or a folder under checkpoints/; default: newest"
    )
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--mode", choices=("greedy", "sampled"), default="greedy")
    parser.add_argument("--manifest", choices=("tune", "test"), default="test")
    parser.add_argument("--device", default="cpu", help="where the policy runs, e.g. cuda")
    parser.add_argument(
        "--env-options",
        default="{}",
        help="of the simulator, e.g. '{pictures: blank}' as a control",
    )
    parser.add_argument("--video", action="store_true", help="also film the first episodes")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    known = {action for each in parser._actions for action in each.option_strings}
    own, rest = split_overlay(arguments, known)
    options = parser.parse_args(own)
    if options.run == EXPERT:
        return _eval_expert(options, rest)
    from embodied_rl.evaluate import evaluate_run

    run = _import_model(options.run, options.recipe, rest)
    record = evaluate_run(
        run,
        checkpoint=options.checkpoint,
        episodes=options.episodes,
        mode=options.mode,
        split=options.manifest,
        device=options.device,
        env_options=_mapping(options.env_options, name="--env-options"),
    )
    if options.video:
        from embodied_rl.video import film_run

        print(film_run(run, checkpoint=options.checkpoint))
    return _print_evaluation(record, as_json=options.json)


def _mapping(text: str, *, name: str) -> dict[str, Any]:
    """Names and values written in YAML or JSON."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{name} {text!r} is no mapping: write it as '{{name: value}}'")
    return value


def _eval_expert(options: argparse.Namespace, overlays: Sequence[str]) -> int:
    """Success of the scripted expert; ``demo`` and ``collect`` show and keep its episodes."""
    for name in ("checkpoint", "video"):
        if getattr(options, name):
            raise ConfigError(f"--{name} is unused with {EXPERT}, which has no run: leave it out")
    if options.env_options != "{}":
        raise ConfigError(
            f"--env-options is unused with {EXPERT}: change its recipe by --env.simulator.NAME"
        )
    from embodied_rl.evaluate import evaluate_recipe_expert

    record = evaluate_recipe_expert(
        _config_of(options.recipe, overlays), episodes=options.episodes, split=options.manifest
    )
    return _print_evaluation(record, as_json=options.json)


def _print_evaluation(record: dict[str, Any], *, as_json: bool) -> int:
    record.pop("successes")
    human = record.get("human_normalized")
    if as_json:
        print(json.dumps(record))
    else:
        print(
            f"{record['mode']}: success {record['success_rate']:.3f} "
            f"[{record['ci_low']:.3f}, {record['ci_high']:.3f}], return "
            f"{record['return_mean']:.3g}, over {record['episodes']} episodes"
            + (f", human-normalised {human:.3f}" if human is not None else "")
        )
    return 0


def _import_model(path: str, name: str | None, overlays: Sequence[str]) -> Path:
    """The run folder to evaluate; a saved Stable-Baselines3 model gets one beside it."""
    if not path.endswith(".zip"):
        if name or overlays:
            raise ConfigError(
                f"{[*(['--recipe'] if name else []), *overlays][0]} is unused with a run: it is "
                "evaluated on its own environment"
            )
        return Path(path)
    from embodied_rl.interop import import_sb3

    config = _config_of(name, overlays)
    folder = import_sb3(path, config, folder=Path(path).with_suffix(""))
    print(folder)
    return folder


def _config_of(name: str | None, overlays: Sequence[str]) -> TrainConfig:
    """The environment to evaluate on, from a recipe or a ``config.yaml``."""
    if not name:
        raise ConfigError("say on which environment: --recipe NAME, or a config.yaml")
    if name.endswith(".yaml"):
        return overlay(from_yaml(Path(name).read_text()), overlays)
    return recipe(name, overlays)


def check_env_command(arguments: list[str]) -> int:
    """``check-env ID|module:attr [--option value]``: what an environment of one's own lacks."""
    parser = argparse.ArgumentParser(
        prog="embodied-rl check-env", description=check_env_command.__doc__
    )
    parser.add_argument("env", help="registered name, gymnasium id, or module:attr")
    own, rest = split_overlay(arguments, {"--help", "-h"})
    options = parser.parse_args(own)
    import yaml

    from embodied_rl.check_env import check_env

    sys.path.insert(0, "")  # module:attr of the present folder
    pairs = [part for text in rest for part in text.split("=", 1)]
    if len(pairs) % 2:
        raise ConfigError(f"{pairs[-1]} has no value: give --option value")
    values = {
        key.removeprefix("--").replace("-", "_"): yaml.safe_load(value)
        for key, value in zip(pairs[::2], pairs[1::2], strict=True)
    }
    failed = 0
    for finding in check_env(options.env, values):
        failed += finding.outcome == "fail"
        detail = f": {finding.detail}" if finding.detail else ""
        print(f"{finding.outcome:4}  {finding.check}{detail}", flush=True)
    print("every check passed" if not failed else f"{failed} to mend")
    return 1 if failed else 0


def collect_command(arguments: list[str]) -> int:
    """``collect metaworld/pick_place --episodes 10``: write a LeRobotDataset v3.0 folder."""
    parser = argparse.ArgumentParser(
        prog="embodied-rl collect", description=collect_command.__doc__
    )
    parser.add_argument("recipe", help="a recipe, or simulator/task such as metaworld/pick_place")
    parser.add_argument("--episodes", type=int, default=10, help="episodes per task in all")
    parser.add_argument("--output", default="", help="dataset folder (default data/<recipe>)")
    parser.add_argument("--policy", default="", help="run folder of a policy; default: the expert")
    parser.add_argument("--all", action="store_true", help="keep failed episodes too")
    own, rest = split_overlay(
        arguments, {"--episodes", "--output", "--policy", "--all", "--help", "-h"}
    )
    options = parser.parse_args(own)
    from embodied_rl.demonstrations import collect_dataset

    names = registry("recipes").names()
    name = options.recipe if options.recipe in names else f"{options.recipe}_sft"
    config = recipe(name if name in names else options.recipe, rest)
    output = Path(options.output or f"data/{options.recipe}")
    summary = collect_dataset(
        config,
        output,
        episodes_per_task=options.episodes,
        policy_run=options.policy,
        only_successes=not options.all,
    )
    print(summary)
    print(output)
    return 0


def build_vlm_command(arguments: list[str]) -> int:
    """``build-vlm FOLDER``: SmolLM2-135M that sees through EfficientNet-lite0, projector trained.

    Needs the packages of the extra ``small-vlm``; nothing is downloaded.
    """
    from embodied_rl.metrics import Progress
    from embodied_rl.small_vlm import ProjectorConfig, build_small_vlm

    parser = argparse.ArgumentParser(
        prog="embodied-rl build-vlm",
        description=build_vlm_command.__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=Path, help="new folder, to be given as --policy.model FOLDER")
    add("--num-pictures", type=int, help="pictures whose tokens are fitted to words first")
    add("--num-steps", type=int, help="gradient steps through the frozen text model")
    add("--batch-size", type=int, help="pictures of a step")
    add("--learning-rate", type=float, help="the largest one")
    add("--image-size", type=int, help="side of the pictures, a multiple of 32 pixels")
    add("--seed", type=int, help="of pictures, questions and first weights")
    parser.set_defaults(**asdict(ProjectorConfig()))
    options = vars(parser.parse_args(arguments))
    folder, progress = options.pop("folder"), Progress()
    try:
        build_small_vlm(folder, ProjectorConfig(**options), progress=progress)
    finally:
        progress.close()
    print(folder)
    return 0


def list_command(arguments: list[str]) -> int:
    """``list KIND``: the registered names."""
    parser = argparse.ArgumentParser(prog="embodied-rl list", description=list_command.__doc__)
    parser.add_argument("kind", choices=KINDS)
    options = parser.parse_args(arguments)
    for name in registry(options.kind).names():
        print(name)
    return 0


def explain_command(arguments: list[str]) -> int:
    """``explain RECIPE``: what every knob resolves to and what one iteration costs."""
    parser = argparse.ArgumentParser(
        prog="embodied-rl explain", description=explain_command.__doc__
    )
    parser.add_argument("recipe")
    own, rest = split_overlay(arguments, {"--help", "-h"})
    options = parser.parse_args(own)
    from embodied_rl.explain import explain

    print(explain(recipe(options.recipe, rest)))
    return 0


def plot_command(arguments: list[str]) -> int:
    """``plot RUN [RUN ...]``: curves of several runs, mean and interval over seeds."""
    parser = argparse.ArgumentParser(prog="embodied-rl plot", description=plot_command.__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--metric", default="rollout/success_rate")
    parser.add_argument("--output", default="curves.png")
    options = parser.parse_args(arguments)
    from embodied_rl.report import plot_runs

    print(
        plot_runs(
            [Path(path) for path in options.runs],
            output=Path(options.output),
            metric=options.metric,
        )
    )
    return 0


def report_command(arguments: list[str]) -> int:
    """``report RUN``: write curves.png and report.html into the run folder."""
    parser = argparse.ArgumentParser(prog="embodied-rl report", description=report_command.__doc__)
    parser.add_argument("run")
    options = parser.parse_args(arguments)
    from embodied_rl.report import write_report

    print(write_report(Path(options.run)))
    return 0


def doctor_command(arguments: list[str]) -> int:
    """``doctor``: what this machine can run; each line says how to mend it."""
    argparse.ArgumentParser(
        prog="embodied-rl doctor", description=doctor_command.__doc__
    ).parse_args(arguments)
    from embodied_rl.doctor import diagnose

    for check in diagnose():
        mark = "ok  " if check.ok else "miss"
        line = f"{mark}  {check.name}: {check.detail}"
        print(line if check.ok or not check.mend else f"{line}; {check.mend}")
    return 0


def demo_command(arguments: list[str]) -> int:
    """``demo``: 10 expert episodes, SFT, Flow-SDE, evaluation of both, report."""
    parser = argparse.ArgumentParser(prog="embodied-rl demo", description=demo_command.__doc__)
    parser.add_argument("--recipe", default="demo")
    own, rest = split_overlay(arguments, {"--recipe", "--help", "-h"})
    options = parser.parse_args(own)
    from embodied_rl.demo import demo

    demo(recipe(options.recipe, rest))
    return 0


COMMANDS: dict[str, Command] = {
    "train": train_command,
    "eval": eval_command,
    "check-env": check_env_command,
    "collect": collect_command,
    "build-vlm": build_vlm_command,
    "list": list_command,
    "explain": explain_command,
    "plot": plot_command,
    "report": report_command,
    "doctor": doctor_command,
    "demo": demo_command,
}
