#!/usr/bin/env bash
# Makes .venv from the locked packages of JUSTRL_DEVICE, cpu or cuda; run_justrl.sh calls it. Nothing to do: no network.
# uv installs them, brought by any Python where it is missing, and brings the Python that they need.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() {
  echo "run_justrl.sh: $1" >&2
  exit 2
}

case "${JUSTRL_DEVICE:-}" in
  cpu) requirements=requirements-cpu.txt supported="3.11 3.12" ;;
  cuda) requirements=requirements.txt supported="3.12 3.11 3.10" ;;
  *) die "JUSTRL_DEVICE=${JUSTRL_DEVICE:-}: use cpu or cuda" ;;
esac
# The system's certificates, as behind a proxy that has its own; the second name is for older releases of uv.
export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS-1}" UV_NATIVE_TLS="${UV_NATIVE_TLS-1}"
[ -n "${UV_LINK_MODE:-}" ] || unset UV_LINK_MODE # uv refuses an empty one
TORCH_INDEX=https://download.pytorch.org/whl/cpu
# As pip does, take a version from whichever of several indexes has it; all versions are pinned.
export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"
quiet=()
[ -t 2 ] || quiet=(--quiet) # progress bars are for terminals

# Prints the path of uv, which is brought to .uv where there is none.
find_uv() {
  local candidate python reason="" there
  mapfile -t there < <(type -ap uv)
  for candidate in "${there[@]}" .uv/bin/uv .uv/uv "$HOME/.local/bin/uv" "$HOME/.cargo/bin/uv"; do
    [ -x "$candidate" ] || continue
    [[ "$(realpath "$candidate")" != "$PWD/.venv/"* ]] || continue # it would be removed with .venv
    "$candidate" --version >/dev/null 2>&1 && echo "$candidate" && return
  done
  for python in "${JUSTRL_PYTHON_BIN:-python3}" python3 python python2; do
    command -v "$python" >/dev/null || continue
    # pip knows the mirrors that a lab may have; without it, or for an old Python, from PyPI.
    "$python" -m pip install -qq --target .uv 'uv>=0.9' >/dev/null 2>&1 && echo .uv/bin/uv && return
    reason=$("$python" scripts/get_uv.py .uv 2>&1) && echo "$reason" && return
  done
  die "needs uv, and no Python here could fetch it (${reason:-there is none}); see https://docs.astral.sh/uv/getting-started/installation"
}

# Prints the Python for .venv: of this machine, or the version that uv is to bring. On a GPU it needs its headers, since
# Triton compiles at run time, and uv's own has them.
find_python() {
  local version found versions
  read -ra versions <<<"$supported"
  [ -z "${JUSTRL_PYTHON_BIN:-}" ] || versions=("$JUSTRL_PYTHON_BIN")
  for version in "${versions[@]}"; do
    found=$("$uv" python find --system --no-python-downloads --no-project "$version" 2>/dev/null) || continue
    [ "$JUSTRL_DEVICE" = cpu ] || has_headers "$found" || continue
    [[ " $supported " == *" $(version_of "$found") "* ]] && echo "$found" && return
  done
  [ -z "${JUSTRL_PYTHON_BIN:-}" ] ||
    die "JUSTRL_PYTHON_BIN=$JUSTRL_PYTHON_BIN: is no Python ${supported// / or }, or for a GPU has no Python.h"
  echo "${supported%% *}"
}

version_of() { "$1" -c "import sys; print('%d.%d' % sys.version_info[:2])"; }
# As common.machine.compiler_lacks has it.
has_headers() {
  "$1" -c "import os, sys, sysconfig as s; name = s.get_default_scheme().replace('posix_local', 'posix_prefix')
sys.exit(not os.path.exists(s.get_path('include', name) + '/Python.h'))"
}

# Prints uv's options for the places where pip is configured to look, which uv does not read.
pip_places() {
  local line option
  python3 -m pip config list 2>/dev/null | while read -r line; do
    case "$line" in
      *.find-links=*) option=--find-links ;;
      *.extra-index-url=*) option=--index ;;
      *.index-url=*) option=--default-index ;;
      *) continue ;;
    esac
    tr ' ' '\n' <<<"${line#*=}" | sed "s/'//g; s/\\\\n/\n/g" | sed "/^$/d; s/^/$option=/"
  done | awk '!seen[$0]++ && !(/^--default-index=/ && index_seen++)' # uv takes one default index: pip's first
}

# Prints what uv gives as the cause of a failure, or else its first line.
cause() { sed -n 's/^ *cause: //p' <<<"$1" | tail -n 1 | grep . || sed '/^ *$/d' <<<"$1" | head -n 1; }

install_packages() {
  local torch python reason
  python=$(find_python)
  echo "environment: $requirements for Python $python into .venv"
  reason=$("$uv" venv --quiet --clear --python "$python" .venv 2>&1) ||
    die "needs Python ${supported// / or } ($JUSTRL_DEVICE); found none, and uv could not download one ($(cause "$reason")); install one, or set JUSTRL_PYTHON_BIN"
  if [ "$JUSTRL_DEVICE" = cpu ]; then
    .venv/bin/python -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
      die "vLLM on a CPU needs libnuma.so.1; install it (apt-get install libnuma1, or dnf install numactl-libs)"
    torch=$(grep -o '^torch==[^ ]*' "$requirements")
    # The +cpu build is not on PyPI: first the configured places, then PyTorch's own index.
    "${install[@]}" --no-index "$torch" 2>/dev/null ||
      reason=$("$uv" pip install --quiet --python .venv/bin/python --no-deps --default-index "$TORCH_INDEX" "$torch" 2>&1) ||
      die "$torch for this Python is not in the configured indexes of pip, and $TORCH_INDEX could not be reached ($(cause "$reason"))"
    "${install[@]}" -r "$requirements"
  else
    "${install[@]}" -r <(grep -v '^flash-attn==' "$requirements")
  fi
  cp "$requirements" "$stamp"
}

# Installs flash-attn if JUSTRL_FLASH_ATTN asks for it: 1 builds it (an hour or two, with a CUDA toolkit), anything else
# names a wheel. Without it training takes PyTorch's own FlashAttention kernels, so no failure ends the setup.
install_flash_attn() {
  local wanted="${JUSTRL_FLASH_ATTN:-0}" package="${JUSTRL_FLASH_ATTN:-}" log=.venv/flash-attn.log options=()
  local instead="training uses PyTorch's own FlashAttention kernels"
  [ "$wanted" != 0 ] && [ "$JUSTRL_DEVICE" = cuda ] || return 0
  [ "$(cat .venv/.justrl-flash-attn 2>/dev/null)" != "$wanted" ] || return 0
  if [ "$wanted" = 1 ]; then
    package=$(grep -o '^flash-attn==[^ ]*' "$requirements")
    options=(--no-build-isolation) # it is built against the torch that is installed
    if ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
      echo "flash-attn: not built, there is no CUDA toolkit (nvcc); $instead"
      return
    fi
  fi
  echo "flash-attn: installing $package, its output in $log"
  "${install[@]}" "${options[@]}" "$package" >"$log" 2>&1 && echo "$wanted" >.venv/.justrl-flash-attn && return
  echo "flash-attn: not installed ($(sed '/^ *$/d' "$log" | tail -n 1 | cut -c1-200)); $instead"
}

# Installs the packages of the tests alone, if make test names their file; the tests that lack one are skipped.
install_test_packages() {
  local file="${JUSTRL_TEST_PACKAGES:-}"
  ! has_test_packages || return 0
  if "${install[@]}" -r "$file"; then
    cp "$file" .venv/.justrl-tests
  else
    tell_of_missing_test_packages
  fi
}
tell_of_missing_test_packages() { echo "not installed: $JUSTRL_TEST_PACKAGES; tests that need it are skipped"; }
has_test_packages() { [ -z "${JUSTRL_TEST_PACKAGES:-}" ] || cmp -s "$JUSTRL_TEST_PACKAGES" .venv/.justrl-tests; }

stamp=.venv/.justrl-$JUSTRL_DEVICE
up_to_date() { [ -x .venv/bin/python ] && cmp -s "$requirements" "$stamp"; }
if up_to_date && has_test_packages && [ "${JUSTRL_FLASH_ATTN:-0}" = 0 ]; then exit 0; fi
if ! uv=$(find_uv); then
  # Where nothing but the packages of the tests is missing, the tests can do without them.
  up_to_date && [ "${JUSTRL_FLASH_ATTN:-0}" = 0 ] || exit 2
  tell_of_missing_test_packages && exit 0
fi
mapfile -t places < <(pip_places)
install=("$uv" pip install "${quiet[@]}" --python .venv/bin/python --no-deps "${places[@]}")
up_to_date || install_packages
install_flash_attn
install_test_packages
