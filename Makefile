# Every target first makes .venv (see scripts/setup.sh for PYTHON, TORCH_INDEX_URL and NO_APT).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test slow lint oracles bench bench-vlm vllm-env vllm

bin := .venv/bin
setup := VENV=.venv scripts/setup.sh
# How MuJoCo draws without a screen: found out by scripts/setup.sh, unless the caller has set it.
gl = MUJOCO_GL=$${MUJOCO_GL:-$$(cat .venv/mujoco_gl)}
comma := ,
# LIBERO's libraries take 1.1 GB and its tests need its scenes: with the scenes, both.
libero := $(if $(EMBODIED_RL_LIBERO_ASSETS),$(comma)libero)
test_extras := dev,metaworld,atari,maniskill,vqa,vlm,sb3,video$(libero)

help: ## say what the targets do
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: ## imitate ten expert episodes of a Meta-World task, then improve the policy by Flow-SDE RL
	@$(setup) metaworld,video
	@$(gl) $(bin)/embodied-rl demo

test: lint ## lint, then every test that needs neither minutes nor a GPU
	@$(gl) OMP_NUM_THREADS=1 $(bin)/python -m pytest -m "not slow and not gpu" -n 2 --dist worksteal -rs

slow: lint ## the tests that take minutes: every LIBERO task, ManiSkill id and Atari game
	@$(gl) OMP_NUM_THREADS=1 $(bin)/python -m pytest -m "slow and not gpu" -n 2 --dist worksteal -rs

lint: ## ruff, pyright and the import borders
	@$(setup) $(test_extras)
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
	@$(bin)/pyright
	@$(bin)/lint-imports

oracles: ## compare with the functions of rlinf and verl, in an environment of their own
	@bash tests/oracles/run.sh

bench: ## speed against Stable-Baselines3 and a single-file PPO
	@$(setup) $(test_extras),sb3
	@OMP_NUM_THREADS=1 $(bin)/python -m benchmarks

bench-vlm: ## one GRPO iteration on a vision-language model against TRL, in an environment of its own
	@bash benchmarks/vlm.sh

vllm-env: ## make .venv-vllm, the environment in which vLLM generates (3.5 GB)
	@scripts/vllm_env.sh

vllm: vllm-env ## the tests of generation with vLLM
	@OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/vlm/test_vllm.py -rs
