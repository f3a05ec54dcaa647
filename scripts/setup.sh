#!/usr/bin/env bash
# Make a virtual environment that holds this project: scripts/setup.sh EXTRAS
#
# EXTRAS is a comma-separated list of extras of pyproject.toml. Running it again does nothing until
# pyproject.toml, this file or the place of the checkout changes.
#
#   VENV             folder of the environment (default .venv)
#   PYTHON           interpreter to make it with (default: the first found of version 3.11 to 3.13)
#   TORCH_INDEX_URL  URL of torch's CPU wheel index; asked where there is no NVIDIA GPU and pip's own
#                    configuration does not find a CPU build
#   NO_APT=1         leave the system's packages alone
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly extras="${1:?usage: scripts/setup.sh EXTRAS}"
readonly venv="${VENV:-.venv}"
readonly torch_version=2.13.0
readonly fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c "$fits" 2>/dev/null; then echo "$candidate"; return; fi
  done
  fail "no Python 3.11, 3.12 or 3.13 found (looked for ${PYTHON:-python3 and python3.1x});" \
    "install one and name it, e.g. make demo PYTHON=/path/to/python3.12"
}

make_venv() {
  local python
  if [ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    "$venv/bin/python" -c "$fits" || fail "$venv holds another Python than 3.11 to 3.13; remove it"
    return
  fi
  python=$(find_python)
  "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot make virtual" \
    "environments; install its venv module, on Debian or Ubuntu: apt-get install python3-venv"
  say "making $venv with $("$python" --version)"
  "$python" -m venv "$venv"
}

pip_install() { # progress bars for a person, errors alone for a log
  local quiet=(-qq)
  if [ -t 2 ]; then quiet=(); fi
  "$venv/bin/python" -m pip install --disable-pip-version-check ${quiet[@]+"${quiet[@]}"} "$@"
}

install_torch() {
  local index=()
  if "$venv/bin/python" -c "import torch; assert torch.__version__.startswith('$torch_version')" \
    2>/dev/null; then return; fi
  if nvidia-smi -L >/dev/null 2>&1; then
    say "installing torch $torch_version for the NVIDIA GPU (gigabytes, once)"
    pip_install "torch==$torch_version"
    return
  fi
  say "installing the CPU build of torch $torch_version"
  [ -z "${TORCH_INDEX_URL:-}" ] || index=(--extra-index-url "$TORCH_INDEX_URL")
  if ! pip_install ${index[@]+"${index[@]}"} "torch==$torch_version+cpu" 2>/dev/null; then
    say "pip finds no CPU build; taking the default one, which may hold gigabytes of CUDA libraries" \
      "(to avoid that, set TORCH_INDEX_URL to the URL of torch's CPU wheel index)"
    pip_install "torch==$torch_version"
  fi
}

install_libero() { # what LIBERO itself requires brings a torchvision that fits no CPU build of torch
  case ",$extras," in
    *,libero,*) pip_install --no-deps "hf-libero==0.1.4" ;;
  esac
}

loads() { "$venv/bin/python" -c "import ctypes, sys; ctypes.CDLL(sys.argv[1])" "$1" 2>/dev/null; }

rendering() { # how MuJoCo can draw here: egl, osmesa or disable
  if [ "$(uname)" != Linux ]; then echo cgl
  elif loads libEGL.so.1; then echo egl
  elif loads libOSMesa.so.8 || loads libOSMesa.so.6; then echo osmesa
  else echo disable; fi
}

install_gl() {
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get) packages=(libegl1 libgl1 libgl1-mesa-dri)
  local need="videos need libegl1 or libosmesa6"
  if [ "$(rendering)" != disable ]; then return; fi
  if [ -n "${NO_APT:-}" ]; then say "skipped GL libraries: NO_APT is set; $need"; return; fi
  if ! command -v apt-get >/dev/null; then
    say "skipped GL libraries: no apt-get on this system; $need or what your system calls them"
    return
  fi
  if [ "$(id -u)" != 0 ]; then
    if ! sudo -n true 2>/dev/null; then
      say "skipped GL libraries: neither root nor sudo without a password; $need, e.g." \
        "sudo apt-get install ${packages[*]}"
      return
    fi
    apt=(sudo -n "${apt[@]}")
  fi
  say "installing GL libraries: ${packages[*]}"
  if ! { "${apt[@]}" update -qq \
    && "${apt[@]}" install -y -qq --no-install-recommends "${packages[@]}"; } >/dev/null 2>&1; then
    say "skipped GL libraries: apt-get install ${packages[*]} failed; $need"
  fi
}

stamp="$venv/.ready-${extras//,/-}"
key="$(cat pyproject.toml scripts/setup.sh | cksum) $PWD $extras"
if [ "$(cat "$stamp" 2>/dev/null)" != "$key" ]; then
  make_venv
  install_torch
  say "installing embodied-rl[$extras]"
  pip_install --editable ".[$extras]"
  install_libero
  install_gl
  echo "$key" >"$stamp"
fi
rendering >"$venv/mujoco_gl"
