# What run_justrl.sh does in a Slurm job, sourced by it; `run_folder`, `child` and `stage_name` are its own.
# shellcheck shell=bash disable=SC2154

export JUSTRL_NODES="$SLURM_JOB_NUM_NODES" JUSTRL_RAY_PORT="${JUSTRL_RAY_PORT:-$((20000 + SLURM_JOB_ID % 10000))}"
[ -z "${SLURM_GPUS_ON_NODE:-}" ] || export JUSTRL_GPUS_PER_NODE="$SLURM_GPUS_ON_NODE"
echo "Slurm job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, requeued ${SLURM_RESTART_COUNT:-0} times"

# Slurm signals that the time limit is near: a training saves after its step and ends, other stages continue from their
# files. Then the job goes back into the queue, before the limit would end it for good.
requeue() {
  trap '' USR1
  echo "the time limit is near: saving, then back into the queue"
  # Slurm's own deadline, by the clock: the job must be back in the queue before it ends.
  local until=$((SECONDS + ${JUSTRL_SAVE_SECONDS:-540}))
  while [ "$SECONDS" -lt "$until" ]; do
    if [ "${stage_name:-}" != train ] || ! kill -0 "$child" 2>/dev/null; then break; fi
    touch "$run_folder/stop" # again and again: a training that is just starting removes it
    sleep 1
  done
  for _ in {1..10}; do # a busy controller does not answer the first time
    scontrol requeue "$SLURM_JOB_ID" && exit 0
    sleep 5
  done
  echo "run_justrl.sh: Slurm does not requeue job $SLURM_JOB_ID; submit it again" >&2
  exit 1
}
trap requeue USR1

# Makes a Ray cluster of the job's nodes, whose first one runs the training. The status that counts is the one that
# the training leaves in a file: symmetric-run exits with 0 where Ray fails, and on the other nodes whenever it ends.
train_on_slurm() {
  local head address="${JUSTRL_HEAD_ADDRESS:-}" status="$run_folder/train.$SLURM_JOB_ID.status" gpus=()
  read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  # No time limit: srun fails with its node, and the node has just answered recipe.nodes.
  [ -n "$address" ] || read -r address _ < <(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname -I)
  export RAY_ADDRESS="$address:$JUSTRL_RAY_PORT" RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0 RAY_task_events_report_interval_ms=0
  RAY_AUTH_TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
  local setting
  while read -r setting; do export "${setting?}"; done < <(python -m common.ray_start)
  rm -f "$status"
  [ "$JUSTRL_DEVICE" = cuda ] || gpus=(--num-gpus "${JUSTRL_GPUS_PER_NODE:-1}") # one declared for each rank
  # --wait: once a node's task has ended, the training has, or the cluster is lost; nothing is left to be saved.
  # shellcheck disable=SC2016 # these variables are each node's own
  srun --ntasks-per-node=1 --cpu-bind=none --wait=10 bash -c 'exec ray symmetric-run --address "$RAY_ADDRESS" \
    --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "$SLURM_CPUS_ON_NODE" "$@"' ray \
    "${gpus[@]}" -- bash -c 'status=$1 && shift && python -m recipe.train "$@"; echo $? >"$status"' train "$status" "$@" ||
    true
  [ -f "$status" ] || { echo "run_justrl.sh: a node or Ray was lost, see above and $run_folder/train.log" >&2 && return 1; }
  return "$(cat "$status")"
}
