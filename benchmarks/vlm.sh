#!/usr/bin/env bash
# Builds .venv-trl with TRL and what this library needs of it (once), then runs benchmarks/vlm.py,
# both contestants with the same torch and transformers: bash benchmarks/vlm.sh [OPTIONS OF vlm.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv-trl
torch_version=2.13.0
needs=(
    trl==1.16.0 transformers==5.23.0 datasets==5.2.0 accelerate==1.15.0
    peft==0.21.2 "pillow>=11" "gymnasium==1.4.*" safetensors pyyaml rich tensorboard matplotlib scipy
)
recipe="${torch_version} ${needs[*]}"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

if [[ "$(cat "$venv/recipe" 2>/dev/null)" != "$recipe" ]]; then
    echo "building $venv" >&2
    rm -rf "$venv"
    "${PYTHON:-python3.11}" -m venv "$venv"
    # torch first and pinned: an open requirement takes the newest CUDA build
    index=()
    if [[ -n "${TORCH_INDEX_URL:-}" ]]; then index=(--index-url "$TORCH_INDEX_URL"); fi
    pip install --quiet "torch==$torch_version" ${index[@]+"${index[@]}"} >&2
    pip install --quiet "${needs[@]}" >&2
    echo "$recipe" >"$venv/recipe"
fi
PYTHONPATH=. "$venv/bin/python" -m benchmarks.vlm "$@"
