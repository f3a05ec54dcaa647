"""The decoder of configurations: what is said is what is run, and nothing is ignored."""

import pytest

from embodied_rl.config import Component, ConfigError, from_yaml, overlay, to_plain, to_yaml
from embodied_rl.registry import KINDS, RegistryError, options_of, register, registry


def recipe(name="metaworld/push_flow_sde"):
    return registry("recipes").get(name)()


@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "metaworld/push_flow_sde",
        "metaworld/pick_place_grpo",
        "metaworld/mt10_flow_noise",
        "metaworld/reach_ppo",
        "metaworld/reach_sft",
        "cartpole_ppo",
        "pong_ppo",
    ],
)
def test_a_snapshot_is_the_configuration(name):
    config = recipe(name)
    assert to_plain(from_yaml(to_yaml(config))) == to_plain(config)
    assert to_yaml(from_yaml(to_yaml(config))) == to_yaml(config)


def test_every_recipe_can_be_resolved():
    for name in registry("recipes").names():
        to_plain(recipe(name))


def test_every_built_in_component_can_be_imported_and_binds():
    for kind in set(KINDS) - {"recipes", "experts", "scores"}:
        for name in registry(kind).names():
            options_of(registry(kind).get(name))


@pytest.mark.parametrize(
    ("arguments", "path", "value"),
    [
        (["--seed", "7"], "seed", 7),
        (["--env.num-envs=32"], "env.num_envs", 32),
        (["--algorithm.learning-rate", "1e-5"], "algorithm.learning_rate", 1e-5),
        (["--policy.hidden-dims", "8,8"], "policy.hidden_dims", [8, 8]),
        (["--policy.flow.sampler", "cps"], "policy.flow.sampler", "cps"),
        (["--policy.flow.num-denoise-steps", "6"], "policy.flow.num_denoise_steps", 6),
        (["--env.simulator.tasks", "push,reach"], "env.simulator.tasks", ["push", "reach"]),
        (["--env.simulator.tasks", "mt10"], "env.simulator.tasks", "mt10"),
        (["--imitation", "none"], "imitation", None),
        (["--advantage.name", "monte_carlo"], "advantage.name", "monte_carlo"),
        (["--evaluation.modes", "greedy"], "evaluation.modes", ["greedy"]),
    ],
)
def test_overlay_sets_one_key_and_leaves_the_rest(arguments, path, value):
    before, after = to_plain(recipe()), to_plain(overlay(recipe(), arguments))
    found = after
    for part in path.split("."):
        found = found[part]
    assert found == value
    top = path.split(".")[0]
    assert {k: v for k, v in before.items() if k != top} == {
        k: v for k, v in after.items() if k != top
    }


def test_another_component_starts_from_its_own_defaults():
    config = overlay(recipe("metaworld/push_grpo"), ["--advantage.name", "rloo"])
    assert config.advantage == Component("advantages", "rloo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algorithm.num-epoch", "3"], "num_epochs"),
        (["--algoritm.num-epochs", "3"], "algorithm"),
        (["--advantage.gamm", "0.9"], "gamma"),
        (["--advantage.name", "rloo", "--advantage.gamma", "0.9"], "gamma"),
        (["--seed", "many"], "number"),
        (["--seed", "1.5"], "whole number"),
        (["--policy.flow.sampler", "sd"], "ode, sde, cps, noise"),
        (["--policy.flow.std-min", "0.9"], "std_min"),
        (["--env.group-size", "5"], "multiple"),
        (["--env.group-size", "8"], "group_relative"),
        (["--max-refills", "1"], "max_refills"),
        (["--asynchronous", "true"], "num_steps"),
        (["--sampler.name", "vas_mixed", "--num-steps", "8"], "num_steps"),
        (["--algorithm.name", "sft"], "imitation"),
        (["--env.simulator.num-envs", "4"], "num_envs"),
        (["--env", "5"], "parts"),
        (["--seed"], "value"),
        (["seed", "3"], "--key"),
        (["--init-from", "/somewhere"], "imitation"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_run_is_one_sentence_that_names_the_mend(arguments, message):
    with pytest.raises((ConfigError, RegistryError), match=message) as caught:
        overlay(recipe(), arguments)
    assert "\n" not in str(caught.value)


def test_a_group_baseline_makes_reinforce_pp_group_based():
    words = ["--advantage.name", "reinforce_pp", "--num-steps", "0", "--env.group-size"]
    grouped = ["--advantage.baseline", "group"]
    assert overlay(recipe(), [*words, "8", *grouped]).env.group_size == 8
    with pytest.raises(ConfigError, match=r"set env\.group_size to 8"):
        overlay(recipe(), [*words, "1", *grouped])
    with pytest.raises(ConfigError, match="unused with advantage 'reinforce_pp'"):
        overlay(recipe(), [*words, "8"])
    with pytest.raises(ConfigError, match="max_refills is unused"):
        overlay(recipe(), [*words, "8", *grouped, "--max-refills", "1"])


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "name: x", "name: x\nunknown: 1"])
def test_a_file_that_is_no_configuration_is_refused(text):
    with pytest.raises(ConfigError):
        from_yaml(text)


def test_a_name_can_be_taken_once():
    register("advantages", "test_only")(lambda rollout: rollout)
    with pytest.raises(RegistryError, match="already"):
        register("advantages", "test_only")(lambda rollout: rollout)
    with pytest.raises(RegistryError, match="group_relative"):
        registry("advantages").get("group_relativ")
