#!/usr/bin/env bash
# The whole recipe, from an empty machine to a report. --help says how.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'TEXT'
usage: ./run_justrl.sh [CONFIG] [options] [key=value ...]

Sets up the environment if it is not there, prepares data, evaluates the model, trains it with GRPO
through verl, evaluates it again and writes a report. Every stage that is done is skipped; a run that
was interrupted continues from its last checkpoint.

  CONFIG            a config of recipe/config (default: demo)
  --only STAGE      data, train, eval or report instead of all
  --setup-only      make the environment and stop
  --allow KEY       acknowledge a difference from the paper, as recipe.check lists them; may be repeated
  key=value         Hydra overrides for the training; they win over the config

environment: JUSTRL_DEVICE=cpu|cuda    instead of what the machine has
             JUSTRL_DAPO, JUSTRL_BENCH local copies of the training set and the benchmarks (default: the hub)
             JUSTRL_DATA               folder of prepared data (default: data)
             JUSTRL_EVAL               extra arguments for eval.generate
             JUSTRL_WANDB=online|offline  logs to Weights & Biases as well
             JUSTRL_PYTHON_BIN         the Python to make the environment with

examples: ./run_justrl.sh
          ./run_justrl.sh demo trainer.total_training_steps=10
          ./run_justrl.sh justrl_deepseek --only train
TEXT
}

die() {
  echo "run_justrl.sh: $1" >&2
  exit 2
}

# ---------------------------------------------------------------- arguments

config="" only="" setup_only="" overrides=() allowed=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage && exit 0 ;;
    --only)
      only="${2:-}"
      [[ "$only" =~ ^(data|train|eval|report)$ ]] || die "--only takes data, train, eval or report"
      shift
      ;;
    --setup-only) setup_only=1 ;;
    --allow)
      [ $# -gt 1 ] || die "--allow takes a key"
      allowed+=(--allow "$2")
      shift
      ;;
    -*) die "unknown option $1; see --help" ;;
    *=*) overrides+=("$1") ;;
    *)
      [ -z "$config" ] || die "more than one config: $config and $1; see --help"
      config="$1"
      ;;
  esac
  shift
done
config="${config:-demo}"
[ -f "recipe/config/$config.yaml" ] ||
  die "unknown config '$config'; there are $(find recipe/config -maxdepth 1 -name '*.yaml' -printf '%f\n' | sed 's/\.yaml$//' | sort | xargs)"

# ---------------------------------------------------------------- environment

if [ -z "${JUSTRL_DEVICE:-}" ]; then
  [ -d /proc/driver/nvidia/gpus ] && JUSTRL_DEVICE=cuda || JUSTRL_DEVICE=cpu
fi
case "$JUSTRL_DEVICE" in
  cpu) requirements=requirements-cpu.txt supported="3.11" ;;
  cuda) requirements=requirements.txt supported="3.12 3.11 3.10" ;;
  *) die "JUSTRL_DEVICE=$JUSTRL_DEVICE: use cpu or cuda" ;;
esac
export JUSTRL_DEVICE

# Prints the first supported Python on this machine; uv can fetch one where there is none.
find_python() {
  local version candidate
  for version in $supported; do
    for candidate in "${JUSTRL_PYTHON_BIN:-python$version}" python3 python; do
      if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
        command -v "$candidate" && return
      fi
    done
  done
  command -v uv >/dev/null && echo "${supported%% *}" && return
  die "needs Python ${supported// / or } ($JUSTRL_DEVICE) and found $(python3 --version 2>&1); install it or uv, or set JUSTRL_PYTHON_BIN"
}

# Places where pip is configured to look for wheels; uv does not read them by itself.
find_links() {
  "$1" -m pip config list 2>/dev/null | sed -n "s/.*find-links='\(.*\)'$/\1/p" | sed 's/\\n/ /g' | tr ' ' '\n' | sort -u | sed '/^$/d; s/^/--find-links=/'
}

set_up() {
  local python stamp=.venv/.justrl-$JUSTRL_DEVICE
  if [ -f "$stamp" ] && cmp -s "$requirements" "$stamp"; then return; fi
  python=$(find_python)
  echo "environment: $requirements for Python $python into .venv"
  local links install uv
  mapfile -t links < <(find_links "$python")
  if uv=$(command -v uv); then
    uv venv --quiet --clear --python "$python" .venv
  else
    "$python" -m venv --clear .venv
    # uv does in half a minute what takes pip several.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check uv || echo "no uv to be had; pip takes longer"
    uv=.venv/bin/uv
  fi
  if [ -x "$uv" ]; then
    install=("$uv" pip install --quiet --python .venv/bin/python --no-deps "${links[@]}")
  else
    install=(.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "${links[@]}")
  fi
  if [ "$JUSTRL_DEVICE" = cpu ]; then
    local torch
    torch=$(grep -o '^torch==[^ ]*' "$requirements")
    # The +cpu build is not on PyPI: first the configured places, then PyTorch's own index.
    "${install[@]}" --no-index "$torch" 2>/dev/null ||
      "${install[@]}" --index-url https://download.pytorch.org/whl/cpu "$torch"
    "${install[@]}" -r "$requirements"
  else
    # flash-attn is built against the torch that is installed.
    "${install[@]}" -r <(grep -v '^flash-attn==' "$requirements")
    "${install[@]}" --no-build-isolation "$(grep -o '^flash-attn==[^ ]*' "$requirements")"
  fi
  cp "$requirements" "$stamp"
}

started=$SECONDS
stage() { echo "== $1 ($((SECONDS - started)) s)"; }

# Of two starts the second waits until the environment is there. The kernel releases a lock when its
# holder dies; children do not inherit it (9>&-), so that nothing they leave behind can hold it.
stage environment
mkdir -p outputs
exec 9>outputs/.setup.lock
flock --nonblock 9 || { echo "waiting: another start is setting up the environment" && flock 9; }
set_up 9>&-
[ -z "$setup_only" ] || exit 0
export PATH="$PWD/.venv/bin:$PATH" PYTHONUNBUFFERED=1

# ---------------------------------------------------------------- stages

# What the stages need of the composed config; a mistyped key ends the script here.
names=$(python -m recipe.compose "$config" "${overrides[@]}" --get trainer.default_local_dir --get actor_rollout_ref.model.path 9>&-)
{ read -r checkpoints && read -r model; } <<<"$names"
run=$(dirname "$checkpoints")
data_folder="${JUSTRL_DATA:-data}"

# One start at a time of a run.
mkdir -p "$run"
exec 9>"$run/start.lock"
flock --nonblock 9 || die "a run is in progress in $run"

# Is it the paper's? What data and model need is looked at again when they are there.
python -m recipe.check "$config" "${overrides[@]}" "${allowed[@]}" --all --no-files >"$run/check.txt" 9>&- ||
  { status=$? && cat "$run/check.txt" && exit "$status"; }
tail -n 1 "$run/check.txt"

case "$config" in
  demo)
    bench="$data_folder/demo"
    evaluation=(--tasks test --samples 4 --max-tokens 64 --prompt training)
    ;;
  *)
    bench="$data_folder/bench"
    evaluation=()
    ;;
esac
read -ra extra <<<"${JUSTRL_EVAL:-}"

data() {
  if [ "$config" = demo ]; then
    python -m data_prep.demo --output "$data_folder/demo"
    python -m data_prep.backbone --output models/demo
  else
    # Prepared once: a node without access to the hub uses what is there.
    if [ -n "${JUSTRL_BENCH:-}" ] || [ ! -f "$bench/CMIMC25.parquet" ]; then
      python -m data_prep.benchmarks --source "${JUSTRL_BENCH:-hub}" --output "$bench"
    fi
    if [ -n "${JUSTRL_DAPO:-}" ] || [ ! -f "$data_folder/dapo/train.parquet" ]; then
      python -m data_prep.dapo --source "${JUSTRL_DAPO:-BytedTsinghua-SIA/DAPO-Math-17k}" --benchmarks "$bench" \
        --output "$data_folder/dapo/train.parquet"
    fi
  fi
}

# evaluate MODEL NAME
evaluate() {
  python -m eval.generate --model "$1" --bench "$bench" --output "$run/eval/$2" "${evaluation[@]}" "${extra[@]}"
  python -m eval.grade "$run/eval/$2"
}

evaluate_trained() {
  local exported
  exported=$(python -m recipe.export "$run")
  evaluate "$exported" "$(basename "$exported")"
}

for name in ${only:-data base train eval report}; do
  case "$name" in
    data)
      stage "data"
      data 9>&-
      ;;
    base)
      stage "evaluation before training"
      python -m recipe.check "$config" "${overrides[@]}" "${allowed[@]}" >/dev/null 9>&-
      evaluate "$model" base 9>&-
      ;;
    train)
      stage "training"
      python -m recipe.train "$config" "${overrides[@]}" "${allowed[@]}" 9>&-
      ;;
    eval)
      stage "evaluation after training"
      evaluate_trained 9>&-
      ;;
    report)
      stage "report"
      python -m eval.report "$run" 9>&-
      ;;
  esac
done
stage "done"
