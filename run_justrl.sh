#!/usr/bin/env bash
#SBATCH --job-name=justrl
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@600
# The whole recipe, from an empty machine to a report; also the batch script of a Slurm job. see --help.
set -euo pipefail
[ "$(uname -s)" = Linux ] || { echo "run_justrl.sh: needs Linux, or Docker: see docs/install.md" >&2 && exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")"
[ -d recipe ] || cd "$SLURM_SUBMIT_DIR" # sbatch runs a copy of this file, from a folder of its own

source scripts/arguments.sh # sets config, only, setup_only, compare, seeds, arms, overrides, allowed

# Some sandboxes have the device without /proc, or the other way round.
if [ -z "${JUSTRL_DEVICE:-}" ]; then
  JUSTRL_DEVICE=cpu
  if [ -d /proc/driver/nvidia/gpus ] || [ -e /dev/nvidiactl ] || nvidia-smi -L 2>/dev/null | grep -q ^GPU; then
    JUSTRL_DEVICE=cuda
  fi
fi
export JUSTRL_DEVICE PYTHONUNBUFFERED=1
unset PYTHONDONTWRITEBYTECODE # or each of a run's processes compiles again what it imports: half of its start

stage() { echo "== $1 ($SECONDS s)"; }

stage environment
mkdir -p outputs
if [ "${JUSTRL_SETUP:-1}" != 0 ]; then
  # Of two starts the second waits until the environment is there. The kernel releases a lock when its holder dies; the
  # setup's children do not inherit it, so that nothing they leave behind can hold it.
  exec 9>outputs/.setup.lock
  # A status other than 1: a file system without locks.
  flock --nonblock 9 || [ $? != 1 ] || { echo "waiting: another start is setting up the environment" && flock 9; }
  scripts/setup_env.sh 9>&-
  exec 9>&-
  export PATH="$PWD/.venv/bin:$PATH"
fi
[ -z "$setup_only" ] || exit 0

source scripts/processes.sh
[ -z "${SLURM_JOB_ID:-}" ] || source scripts/slurm.sh

# What the stages need of the composed config; a mistyped key ends the script here.
arguments=("$config" "${overrides[@]}")
names=$(python -m recipe.compose "${arguments[@]}" --get trainer.default_local_dir --get actor_rollout_ref.model.path)
{ read -r checkpoints && read -r model; } <<<"$names"
run_folder=$(dirname "$checkpoints")
mkdir -p "$run_folder"

# Compares the config with the paper. Data and model are checked again when they are there.
check=(python -m recipe.check "${arguments[@]}" "${allowed[@]}")
"${check[@]}" --all --no-files >"$run_folder/check.txt" || { status=$? && cat "$run_folder/check.txt" && exit "$status"; }
tail -n 1 "$run_folder/check.txt"
if [ -n "${SLURM_JOB_ID:-}${RAY_ADDRESS:-}" ] || [ "$JUSTRL_DEVICE" = cuda ]; then
  [[ "$only" =~ ^(data|report)$ ]] || run_stage python -m recipe.nodes "${arguments[@]}"
elif [ -z "$only${JUSTRL_FORK_SERVER:-}" ]; then # a single stage starts its own
  start_fork_server "$run_folder/fork_server.log"
fi

data_folder="${JUSTRL_DATA:-data}"
case "$config" in
  demo*) bench="$data_folder/demo" evaluation=(--tasks test --samples 4 --max-tokens 64 --prompt training) ;;
  gsm8k*) bench="$data_folder/gsm8k" evaluation=(--tasks GSM8K --samples 4 --max-tokens 1024) ;;
  *) bench="$data_folder/bench" evaluation=() ;;
esac
read -ra extra <<<"${JUSTRL_EVAL:-}"

data() {
  if [[ "$config" = demo* ]]; then
    local kind=()
    case "$config" in
      demo_hard) kind=(--hard) ;;
      demo_pretrained)
        # What is there goes on as it was begun.
        [ -n "${JUSTRL_INIT:-}" ] || [ ! -f models/demo_pretrained/justrl_backbone.json ] ||
          [ ! -f "$bench/train.parquet" ] || return 0
        kind=(--init "${JUSTRL_INIT:-HuggingFaceTB/SmolLM2-135M-Instruct}")
        ;;
    esac
    python -m data_prep.demo --data "$bench" --model "models/$config" "${kind[@]}"
  elif [[ "$config" = gsm8k* ]]; then
    if [ -n "${JUSTRL_GSM8K:-}" ] || [ ! -f "$bench/GSM8K.parquet" ] || [ ! -f "$bench/train.parquet" ]; then
      python -m data_prep.gsm8k --source "${JUSTRL_GSM8K:-openai/gsm8k}" --output "$bench"
    fi
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
  python common/forked_python.py -m eval.generate --model "$1" --bench "$bench" --output "$run_folder/eval/$2" "${evaluation[@]}" "${extra[@]}"
  python -m eval.grade "$run_folder/eval/$2" ${JUSTRL_JUDGE:+--judge "$JUSTRL_JUDGE"}
}

base() {
  "${check[@]}" >/dev/null
  evaluate "$model" base
}

train() {
  if [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ] && [ -z "${RAY_ADDRESS:-}" ]; then
    train_on_slurm "${arguments[@]}" "${allowed[@]}"
  else
    python -m recipe.train "${arguments[@]}" "${allowed[@]}"
  fi
}

evaluate_trained() {
  local exported
  exported=$(python -m recipe.export "$run_folder")
  evaluate "$exported" "$(basename "$exported")"
}

compare_arms() {
  local comparison=(python -m recipe.compare "$config" "${arms[@]}" "${seeds[@]}" "${overrides[@]}" "${allowed[@]}")
  local folders status=0
  folders=$("${comparison[@]}" --folders)
  mapfile -t folders <<<"$folders"
  "${comparison[@]}" || status=$?
  [ "$status" -le 1 ] || return "$status"
  python -m eval.report "${folders[@]}" --output "$run_folder/arms" || return # it lists the runs that are not done
  return "$status"
}

stages="data base train eval report"
[ -z "$compare" ] || stages="data compare"
for stage_name in ${only:-$stages}; do
  case "$stage_name" in
    compare) stage "comparison" && use_fork_server && run_stage compare_arms ;;
    data) stage "data" && run_stage data ;;
    base) stage "evaluation before training" && use_fork_server && run_stage base ;;
    train) stage "training" && run_stage train ;;
    eval) stage "evaluation after training" && run_stage evaluate_trained ;;
    report) stage "report" && run_stage python -m eval.report "$run_folder" ;;
  esac
done
stage "done"
