#!/usr/bin/env bash
#SBATCH --job-name=justrl
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@600
# The whole recipe, from an empty machine to a report; also the batch script of a Slurm job. --help says how.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
[ -d recipe ] || cd "$SLURM_SUBMIT_DIR" # sbatch runs a copy of this file, from a folder of its own

usage() {
  cat <<'TEXT'
usage: ./run_justrl.sh [CONFIG] [options] [key=value ...]
       sbatch --nodes N [sbatch's options] run_justrl.sh [CONFIG] [options] [key=value ...]

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
             JUSTRL_JUDGE              model that eval.grade asks about what its rule rejects
             JUSTRL_WANDB=online|offline  logs to Weights & Biases as well
             JUSTRL_PYTHON_BIN         the Python to make the environment with
             JUSTRL_FLASH_ATTN=1|WHEEL builds flash-attn with the machine's CUDA toolkit, or installs a wheel of it
             JUSTRL_SETUP=0            makes no environment: the packages are on the PATH, as in a container
             RAY_ADDRESS               trains on this Ray cluster; on Slurm one is made of the job's nodes
             JUSTRL_NODES, JUSTRL_GPUS_PER_NODE  machines to train on (default: Slurm's, else the config's)

examples: ./run_justrl.sh
          ./run_justrl.sh demo trainer.total_training_steps=10
          ./run_justrl.sh justrl_deepseek --only train
          sbatch --nodes 4 --gpus-per-node 8 --exclusive --time 24:00:00 run_justrl.sh justrl_deepseek
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

# Some sandboxes have the device without /proc, or the other way round.
if [ -z "${JUSTRL_DEVICE:-}" ]; then
  JUSTRL_DEVICE=cpu
  if [ -d /proc/driver/nvidia/gpus ] || [ -e /dev/nvidiactl ] || nvidia-smi -L 2>/dev/null | grep -q ^GPU; then
    JUSTRL_DEVICE=cuda
  fi
fi
export JUSTRL_DEVICE

started=$SECONDS
stage() { echo "== $1 ($((SECONDS - started)) s)"; }

# Of two starts the second waits until the environment is there. The kernel releases a lock when its
# holder dies; the setup's children do not inherit it, so that nothing they leave behind can hold it.
stage environment
mkdir -p outputs
if [ "${JUSTRL_SETUP:-1}" != 0 ]; then
  exec 9>outputs/.setup.lock
  # A status other than 1: a file system without locks.
  flock --nonblock 9 || [ $? != 1 ] || { echo "waiting: another start is setting up the environment" && flock 9; }
  scripts/setup_env.sh 9>&-
  exec 9>&-
  export PATH="$PWD/.venv/bin:$PATH"
fi
[ -z "$setup_only" ] || exit 0
export PYTHONUNBUFFERED=1

# ---------------------------------------------------------------- nodes

nodes=1
if [ -n "${SLURM_JOB_ID:-}" ]; then
  nodes=$SLURM_JOB_NUM_NODES
  export JUSTRL_NODES="$nodes" JUSTRL_RAY_PORT="${JUSTRL_RAY_PORT:-$((20000 + SLURM_JOB_ID % 10000))}"
  [ -z "${SLURM_GPUS_ON_NODE:-}" ] || export JUSTRL_GPUS_PER_NODE="$SLURM_GPUS_ON_NODE"
  echo "Slurm job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, requeued ${SLURM_RESTART_COUNT:-0} times"
fi

# Runs a command in the background, for bash waits for one in the foreground before it sees a signal, and in a process
# group of its own (set -m), to which signals are passed on.
run="" child="" stage_name=""
run_stage() {
  set -m
  "$@" &
  child=$!
  set +m
  wait "$child"
}

# pass_on SIGNAL STATUS
pass_on() {
  trap '' INT TERM HUP
  [ -z "$child" ] || kill -s "$1" -- "-$child" 2>/dev/null || true
  while [ -n "$child" ] && kill -0 -- "-$child" 2>/dev/null; do sleep 0.2; done
  exit "$2"
}
trap 'pass_on INT 130' INT
trap 'pass_on TERM 143' TERM
trap 'pass_on HUP 129' HUP

# Slurm says that the time limit is near: a training saves after its step and ends, other stages continue from their
# files. Then the job goes back into the queue, before the limit would end it for good.
requeue() {
  trap '' USR1
  echo "the time limit is near: saving, then back into the queue"
  local second
  for ((second = 0; second < ${JUSTRL_SAVE_SECONDS:-540}; second++)); do
    if [ "$stage_name" != train ] || ! kill -0 "$child" 2>/dev/null; then break; fi
    touch "$run/stop" # again and again: a training that is just starting removes it
    sleep 1
  done
  timeout 60 scontrol requeue "$SLURM_JOB_ID"
  exit 0
}

[ -z "${SLURM_JOB_ID:-}" ] || trap requeue USR1

# Makes a Ray cluster of the job's nodes, whose first one runs the training. The status that counts is the one that
# the training leaves in a file: symmetric-run ends with 0 where Ray fails, and on the other nodes whenever it ends.
train_on_slurm() {
  local head address="${JUSTRL_HEAD_ADDRESS:-}" status="$run/train.$SLURM_JOB_ID.status"
  read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  [ -n "$address" ] || read -r address _ < <(timeout 60 srun --nodes=1 --ntasks=1 --nodelist="$head" hostname -I)
  export RAY_ADDRESS="$address:$JUSTRL_RAY_PORT" RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0
  RAY_AUTH_TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
  export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT="${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-300}" # 30 s by default
  rm -f "$status"
  local gpus=()
  [ "$JUSTRL_DEVICE" = cuda ] || gpus=(--num-gpus "${JUSTRL_GPUS_PER_NODE:-1}") # one declared for each rank
  # shellcheck disable=SC2016 # these variables are each node's own
  srun --ntasks-per-node=1 --cpu-bind=none --wait=10 bash -c 'exec ray symmetric-run --address "$RAY_ADDRESS" \
    --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "$SLURM_CPUS_ON_NODE" "$@"' ray \
    "${gpus[@]}" -- bash -c 'status=$1 && shift && python -m recipe.train "$@"; echo $? >"$status"' train "$status" "$@" ||
    true
  [ -f "$status" ] || { echo "run_justrl.sh: a node or Ray was lost, see above and $run/train.log" >&2 && return 1; }
  return "$(cat "$status")"
}

# ---------------------------------------------------------------- stages

# What the stages need of the composed config; a mistyped key ends the script here.
names=$(python -m recipe.compose "$config" "${overrides[@]}" --get trainer.default_local_dir --get actor_rollout_ref.model.path)
{ read -r checkpoints && read -r model; } <<<"$names"
run=$(dirname "$checkpoints")
data_folder="${JUSTRL_DATA:-data}"

mkdir -p "$run"
# Is it the paper's? What data and model need is looked at again when they are there.
python -m recipe.check "$config" "${overrides[@]}" "${allowed[@]}" --all --no-files >"$run/check.txt" ||
  { status=$? && cat "$run/check.txt" && exit "$status"; }
tail -n 1 "$run/check.txt"
if [ -n "${SLURM_JOB_ID:-}${RAY_ADDRESS:-}" ] || [ "$JUSTRL_DEVICE" = cuda ]; then
  [[ "$only" =~ ^(data|report)$ ]] || run_stage python -m recipe.nodes "$config" "${overrides[@]}"
fi

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
    python -m data_prep.demo --data "$data_folder/demo" --model models/demo
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
  python -m eval.grade "$run/eval/$2" ${JUSTRL_JUDGE:+--judge "$JUSTRL_JUDGE"}
}

base() {
  python -m recipe.check "$config" "${overrides[@]}" "${allowed[@]}" >/dev/null
  evaluate "$model" base
}

train() {
  if [ "$nodes" -gt 1 ] && [ -z "${RAY_ADDRESS:-}" ]; then
    train_on_slurm "$config" "${overrides[@]}" "${allowed[@]}"
  else
    python -m recipe.train "$config" "${overrides[@]}" "${allowed[@]}"
  fi
}

evaluate_trained() {
  local exported
  exported=$(python -m recipe.export "$run")
  evaluate "$exported" "$(basename "$exported")"
}

for stage_name in ${only:-data base train eval report}; do
  case "$stage_name" in
    data) stage "data" && run_stage data ;;
    base) stage "evaluation before training" && run_stage base ;;
    train) stage "training" && run_stage train ;;
    eval) stage "evaluation after training" && run_stage evaluate_trained ;;
    report) stage "report" && run_stage python -m eval.report "$run" ;;
  esac
done
stage "done"
