#!/usr/bin/env bash
# Builds .venv-oracles with rlinf 0.3.0, verl 0.9.1 and TRL 1.16.0 (once), then compares our numerics with
# theirs. The packages are installed without their requirements, which pull in whole inference stacks; the
# few modules that their algorithm files really import are listed below.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

venv=.venv-oracles
torch_version=2.13.0
peers=(rlinf==0.3.0 verl==0.9.1 trl==1.16.0)
needs=(
    numpy gymnasium==1.4.0                                  # embodied_rl.types
    omegaconf packaging "tensordict<=0.10" hydra-core codetiming ray regex "transformers<5.11"
    "accelerate>=1.10.1" "datasets>=4.7" "pandas>=2.1.1" jinja2 psutil  # trl.trainer.grpo_trainer
)
recipe="${torch_version} ${peers[*]} ${needs[*]}"
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
    pip install --quiet --no-deps "${peers[@]}" >&2
    echo "$recipe" >"$venv/recipe"
fi
OMP_NUM_THREADS=1 PYTHONPATH=. "$venv/bin/python" tests/oracles/compare.py "$@"
