# The arguments of run_justrl.sh, which sources this: config, only, setup_only, compare, seeds, arms, overrides, allowed.
# shellcheck shell=bash disable=SC2034

usage() {
  cat <<'TEXT'
usage: ./run_justrl.sh [CONFIG] [options] [key=value ...]
       ./run_justrl.sh --compare CONFIG [ARM ...] [--seeds N] [options] [key=value ...]
       sbatch --nodes N [sbatch's options] run_justrl.sh [CONFIG] [options] [key=value ...]

Sets up the environment if it is not there, prepares data, evaluates the model, trains it with GRPO
through verl, evaluates it again and writes a report. Every stage that is done is skipped; a run that
was interrupted continues from its last checkpoint.

  CONFIG            a config of recipe/config (default: demo)
  --only STAGE      data, train, eval (after training) or report instead of all
  --compare         train the config and arms of recipe/config/arms (A,B: both together) with the same seeds,
                    and report what each arm changed: docs/runs.md
  --seeds N         with --compare: seeds 1 to N (default: 3)
  --setup-only      create the environment and exit
  --restarts N      restart a failed or hung training up to N times (default: 3, or 0 at a terminal)
  --allow KEY       accept a difference from the paper that recipe.check lists; may be repeated
  --alert COMMAND   shell command to run on warnings, restarts, hangs, failure and the end: docs/monitoring.md
  +arms=NAME        the config with an arm of recipe/config/arms, or +arms=[NAME,NAME]: docs/runs.md
  key=value         Hydra overrides for the training; they win over the config

environment: JUSTRL_DEVICE=cpu|cuda    instead of what the machine has
             JUSTRL_DAPO, JUSTRL_BENCH local copies of the training set and the benchmarks (default: the hub)
             JUSTRL_GSM8K              a local copy of GSM8K, for the config gsm8k
             JUSTRL_INIT               model that demo_pretrained begins with, folder or hub id (default: SmolLM2-135M-Instruct)
             JUSTRL_DATA               folder of prepared data (default: data)
             JUSTRL_EVAL               extra arguments for eval.generate
             JUSTRL_JUDGE              model that judges what the rule of eval.grade rejects
             JUSTRL_WANDB=online|offline  logs to Weights & Biases as well
             JUSTRL_ALERT              the command of --alert
             JUSTRL_RESTARTS           the same as --restarts
             JUSTRL_PYTHON_BIN         the Python to make the environment with
             JUSTRL_FLASH_ATTN=1|WHEEL builds flash-attn with the machine's CUDA toolkit, or installs a wheel of it
             JUSTRL_SETUP=0            makes no environment: the packages are on the PATH, as in a container
             RAY_ADDRESS               trains on this Ray cluster; on Slurm one is made of the job's nodes
             JUSTRL_NODES, JUSTRL_GPUS_PER_NODE  machines to train on (default: Slurm's, else the config's)

examples: ./run_justrl.sh
          ./run_justrl.sh demo trainer.total_training_steps=10
          ./run_justrl.sh justrl_deepseek --only train
          ./run_justrl.sh --compare demo_hard overlong gspo dynamic_sampling
          sbatch --nodes 4 --gpus-per-node 8 --exclusive --time 24:00:00 run_justrl.sh justrl_deepseek
TEXT
}

die() {
  echo "run_justrl.sh: $1" >&2
  exit 2
}

only="" setup_only="" compare="" seeds=() arms=() overrides=() allowed=()
while [ $# -gt 0 ]; do
  case "$1" in
    "") die "an argument is empty; is a variable unset?" ;;
    -h | --help) usage && exit 0 ;;
    --only)
      only="${2:-}"
      [[ "$only" =~ ^(data|train|eval|report)$ ]] || die "--only takes data, train, eval or report"
      shift
      ;;
    --setup-only) setup_only=1 ;;
    --compare) compare=1 ;;
    --seeds)
      [[ "${2:-}" =~ ^[1-9][0-9]{0,3}$ ]] || die "--seeds takes a number of at least 1"
      seeds=(--seeds "$2")
      shift
      ;;
    --restarts)
      [[ "${2:-}" =~ ^[0-9]{1,9}$ ]] || die "--restarts takes a number, 0 for none"
      export JUSTRL_RESTARTS="$2"
      shift
      ;;
    --allow)
      [ -n "${2:-}" ] || die "--allow takes a key"
      allowed+=(--allow "$2")
      shift
      ;;
    --alert)
      [ $# -gt 1 ] || die "--alert takes a command"
      export JUSTRL_ALERT="$2" # no override: Hydra and OmegaConf would read it
      shift
      ;;
    -*) die "unknown option $1; see --help" ;;
    *=*) overrides+=("$1") ;;
    *) arms+=("$1") ;; # the first one is the config
  esac
  shift
done
config="${arms[0]:-demo}"
arms=("${arms[@]:1}")
if [ -n "$compare" ]; then
  [ -z "$only" ] || die "--compare has no stages; leave --only out"
  [ ${#arms[@]} -gt 0 ] || die "--compare needs an arm of recipe/config/arms: docs/runs.md"
  [ -z "${SLURM_JOB_ID:-}" ] || die "--compare is for one machine; on Slurm each run is a job: docs/runs.md"
elif [ ${#arms[@]} -gt 0 ]; then
  die "more than one config: $config and ${arms[0]}; for an arm use +arms=${arms[0]} or --compare"
elif [ ${#seeds[@]} -gt 0 ]; then
  die "--seeds is for --compare"
fi
[[ "${JUSTRL_RESTARTS:-0}" =~ ^[0-9]{1,9}$ ]] || die "JUSTRL_RESTARTS=$JUSTRL_RESTARTS: use a number, 0 for none"
[ -f "recipe/config/$config.yaml" ] ||
  die "unknown config '$config'; there are $(find recipe/config -maxdepth 1 -name '*.yaml' -printf '%f\n' | sed 's/\.yaml$//' | sort | xargs)"
