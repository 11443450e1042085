"""Train a config through verl: python -m recipe.train demo [key=value ...]

Checks that the config is the paper's and what the run needs, continues from its last checkpoint if there is one,
prints a line per step and keeps verl's own output in a log. Files appear in `outputs/<experiment_name>/`. Exit status:
0 done, 1 the run failed or was interrupted, 2 wrong use. Paths are relative to the repository's root.

example: python -m recipe.train justrl_deepseek trainer.nnodes=1 trainer.n_gpus_per_node=8
"""

import argparse
import getpass
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from common.command import run as run_command
from common.files import write_text_whole
from common.machine import device
from common.processes import (
    RAY_PATIENCE,
    ProcessRecord,
    adopt_orphans,
    end_with_parent,
    python_path,
    run_lock,
    scratch,
    temporary_root,
)
from common.progress import WARNING, WaitingLine, cause
from recipe import attention, preflight
from recipe.check import add_arguments, compare, flat, require_paper
from recipe.checkpoints import (
    DISCARDED,
    STOP,
    agree,
    best_checkpoint,
    check_ranks,
    complete_checkpoints,
    retain,
)
from recipe.monitor.health import Warnings
from recipe.monitor.loggers import purge_tensorboard, use_wandb, wandb_environment
from recipe.monitor.metrics import StepLines, format_metrics, has_training, read_metrics, validation_accuracy

ROOT = Path(__file__).resolve().parent.parent
WARM_PYTHON = ROOT / "recipe" / "cpu" / "fork_server.py"
POLL_SECONDS = 1.0
FULL_BYTES = 1 << 20  # less room than this after a failure means that it was the disk
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# What most of a run's processes import, without Ray and verl: both read the environment of the process they
# are first imported in, so a fork must import them itself.
WARM_MODULES = (
    "tensordict",
    "torch._inductor.lowering",
    "torch.utils.tensorboard",
    "datasets",
    "torchdata.stateful_dataloader",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen2.modeling_qwen2",
    "peft",
    "vllm.outputs",
    "vllm.entrypoints.openai.api_server",
)

CPU_ENVIRONMENT = {
    # The first three make verl load recipe.cpu.platform, see there.
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "recipe.cpu.platform",
    "VERL_ENGINE_DEVICE": "cuda",  # verl registers its FSDP engines for cuda and npu only (EngineRegistry)
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # lets vLLM's engine run the model itself, one process fewer
    "TORCHDYNAMO_DISABLE": "1",  # compiling takes longer than a tiny model's whole run
    "TQ_NUM_THREADS": "1",  # TransferQueue's default of 8 makes it warn at every call on a smaller machine
    "OMP_NUM_THREADS": "1",  # rollout and agent loops share two cores; training takes them all, see cpu_platform
}


class Interrupted(BaseException):  # as KeyboardInterrupt: OmegaConf dresses up every Exception that crosses it
    """SIGINT, SIGTERM or SIGHUP arrived."""


def run_folder(config: DictConfig) -> Path:
    """Return the folder of a run, named by its experiment alone, so that a relaunch finds it."""
    return Path(config.trainer.default_local_dir).parent


def prepare_config(config: DictConfig, step: int) -> None:
    """Set in place what depends on this start: where Ray runs, and no second validation of a step."""
    with open_dict(config):
        config.trainer.max_actor_ckpt_to_keep = None  # see recipe.checkpoints.retain
        if step:
            config.trainer.val_before_train = False  # it would log the checkpoint's step again
        if not os.environ.get("RAY_ADDRESS"):
            # Without "local" Ray joins whatever cluster it finds on the machine.
            config.ray_kwargs.ray_init.address = "local"
            config.ray_kwargs.ray_init.include_dashboard = False
            # Logical CPUs: of fewer than verl's actors hold, it waits for ever for more.
            enough = max(os.cpu_count(), preflight.ray_cpus_needed(config))
            config.ray_kwargs.ray_init.num_cpus = config.ray_kwargs.ray_init.num_cpus or enough
        else:
            # The cluster's workers were not started by this process and do not inherit its environment.
            config.ray_kwargs.ray_init.runtime_env.env_vars = fixed_environment(config)
            config.ray_kwargs.ray_init.runtime_env.worker_process_setup_hook = "recipe.driver.enter_repository"
            for declared in ("num_cpus", "num_gpus"):  # the cluster has its own numbers, and Ray refuses others
                config.ray_kwargs.ray_init.pop(declared, None)
        if os.environ.get("JUSTRL_WARM_PYTHON"):
            config.ray_kwargs.ray_init.runtime_env.py_executable = shlex.join(
                [sys.executable, "-S", "-E", str(WARM_PYTHON)]
            )


def attempt_path(config: DictConfig) -> Path:
    """Return where verl's file logger writes; it empties the file at each start, hence not `metrics.jsonl`."""
    return run_folder(config) / "attempt.jsonl"


def fixed_environment(config: DictConfig) -> dict[str, str]:
    """Return the variables that every process of the run needs, wherever it runs."""
    return {
        "PYTHONPATH": python_path(),
        "VERL_FILE_LOGGER_PATH": str(attempt_path(config).resolve()),
        "TENSORBOARD_DIR": str((run_folder(config) / "tensorboard").resolve()),
        "VLLM_NO_USAGE_STATS": "1",
        **wandb_environment(config, run_folder(config)),
        **(CPU_ENVIRONMENT if config.trainer.device == "cpu" else gpu_environment(config)),
    }


def gpu_environment(config: DictConfig) -> dict[str, str]:
    """Return the variables of a run on GPUs: CPU threads for an optimizer that steps there, of which Ray gives one."""
    if not config.actor_rollout_ref.actor.fsdp_config.offload_policy:
        return {}
    threads = max(1, len(os.sched_getaffinity(0)) // config.trainer.n_gpus_per_node)
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}


def environment(config: DictConfig, temporary: Path) -> dict[str, str]:
    """Return the whole environment of the driver, and so of every process of a local Ray."""
    fixed = RAY_PATIENCE | os.environ | fixed_environment(config)
    fixed |= {"JUSTRL_PYTHON": sys.executable, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    if not os.environ.get("RAY_ADDRESS"):
        fixed |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "TMPDIR": str(temporary)}
        kept = str(temporary_root())  # for logs, and for what was compiled
        fixed |= {"RAY_TMPDIR": os.environ.get("RAY_TMPDIR", kept)}
        fixed |= {
            "TORCHINDUCTOR_CACHE_DIR": os.environ.get(
                "TORCHINDUCTOR_CACHE_DIR", f"{kept}/torchinductor_{getpass.getuser()}"
            )
        }
    return fixed


def changed_keys(before: Path, config: DictConfig) -> list[str]:
    """Return the dotted keys in which `config` differs from the one that the run was last started with."""
    if not before.exists():
        return []
    old, new = (flat(c) for c in (OmegaConf.load(before), config))
    ignored = ("ray_kwargs.", "trainer.val_before_train", "trainer.max_actor_ckpt_to_keep")  # set at every start
    return sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k) and not k.startswith(ignored))


def start_warm_python(socket: str, variables: dict[str, str], log) -> subprocess.Popen:
    """Start the server that this run's processes are forked from, and wait until it listens."""
    command = [sys.executable, "-m", "recipe.cpu.fork_server", socket, *WARM_MODULES]
    server = subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
    waiting = WaitingLine("importing torch, vLLM and transformers, once for all processes")
    while not os.path.exists(socket):
        if server.poll() is not None:
            raise RuntimeError("the warm Python ended before it listened")
        waiting.tick()
        time.sleep(POLL_SECONDS)
    return server


def follow(driver: subprocess.Popen, record: ProcessRecord, config: DictConfig, keep: int | None, log) -> int:
    """Move finished steps from verl's file to `metrics.jsonl`, a line printed for each, until the driver ends.

    Warnings follow the line of their step, and go to `log` too, which the driver's processes append to as well.
    """
    checkpoints = Path(config.trainer.default_local_dir)
    attempt, metrics_path = attempt_path(config), run_folder(config) / "metrics.jsonl"
    lines, warnings = StepLines(config.trainer.total_training_steps or 0), Warnings(config)
    accuracy: dict[int, float | None] = {}
    for step, metrics in read_metrics(metrics_path).items():
        warnings.add(step, metrics)  # what was said before a resume is not said again
        accuracy[step] = validation_accuracy(metrics)
    retain(checkpoints, keep, max(accuracy, default=0), best_checkpoint(checkpoints, accuracy))
    seen: set[int] = set()
    read_to = 0
    waiting = WaitingLine("starting Ray, the FSDP actor and the vLLM rollout")

    def collect(last: bool = False) -> None:
        nonlocal read_to
        size = attempt.stat().st_size if attempt.exists() else 0
        if size == read_to and not last:  # on a network file system the size may be an old one, until it is opened
            return
        read_to = size
        for step, metrics in read_metrics(attempt).items():
            if step not in seen:
                seen.add(step)
                with open(metrics_path, "a") as file:
                    file.write(format_metrics({step: metrics}))
                print(lines.line(step, metrics), flush=True)
                for warning in warnings.add(step, metrics):
                    print(f"  {WARNING}{warning}", flush=True)
                    log.write(f"\n{WARNING}{warning}\n")  # on a line of its own: verl's progress bar ends without one
                    log.flush()
                accuracy[step] = validation_accuracy(metrics)
                retain(checkpoints, keep, step, best_checkpoint(checkpoints, accuracy))

    while driver.poll() is None:
        record.update()
        collect()
        if not seen:
            waiting.tick()
        time.sleep(POLL_SECONDS)
    collect(last=True)
    attempt.unlink(missing_ok=True)
    return driver.returncode


def train(config: DictConfig) -> int:
    """Run a composed config to its end and return the exit status."""
    folder = run_folder(config)
    metrics_path, attempt, log_path = folder / "metrics.jsonl", attempt_path(config), folder / "train.log"
    total = config.trainer.total_training_steps
    checkpoints, keep = Path(config.trainer.default_local_dir), config.trainer.max_actor_ckpt_to_keep
    with run_lock(folder):
        record = ProcessRecord(folder)
        if ended := record.end_leftovers():
            print(f"ended {ended} processes that a dead run had left")
        step = agree(metrics_path, attempt, checkpoints)
        (folder / STOP).unlink(missing_ok=True)
        for aside in checkpoints.glob("discarded_*"):
            print(f"  note: its metrics were not written, so training goes there again: {aside}")
        if not step and (folder / DISCARDED).exists():
            print(f"  note: steps without a checkpoint behind them are run again; see {folder / DISCARDED}")
        if total and step >= total:
            print(f"training is done: {folder} is at step {step}")
            return 0
        preflight.check_gpus_free(config)
        if step:
            check_ranks(checkpoints / f"global_step_{step}", config)
        purge_tensorboard(folder / "tensorboard", step)
        print(f"training {config.trainer.experiment_name} " + (f"from step {step}" if step else "from the start"))
        print(f"  folder {folder}, full output in {log_path}", flush=True)
        with scratch(folder) as temporary, open(log_path, "a") as log:
            socket = str(temporary / "warm")
            warm = config.trainer.device == "cpu" and os.environ.get("JUSTRL_WARM_START") != "0"
            if warm := warm and not {"JUSTRL_WARM_PYTHON", "RAY_ADDRESS"} & os.environ.keys():
                os.environ["JUSTRL_WARM_PYTHON"] = socket
            chosen = attention.settle(config)
            print(f"  attention: {chosen}", flush=True)
            log.write(f"attention: {chosen}\n")
            log.flush()
            if step and (changed := changed_keys(folder / "config.yaml", config)):
                print(f"  note: since the last start changed {', '.join(changed)}")
            prepare_config(config, step)
            write_text_whole(folder / "config.yaml", OmegaConf.to_yaml(config, sort_keys=True))
            log_start = log.tell()
            variables = environment(config, temporary)
            adopt_orphans()
            try:
                if warm:
                    start_warm_python(socket, variables, log)
                python = [sys.executable, *([str(WARM_PYTHON)] if "JUSTRL_WARM_PYTHON" in variables else [])]
                command = [*python, "-m", "recipe.driver", str(folder / "config.yaml")]
                # A run whose supervisor was killed holds no lock, so its driver must not go on.
                options = {"cwd": ROOT, "start_new_session": True, "preexec_fn": end_with_parent}
                driver = subprocess.Popen(command, env=variables, stdout=log, stderr=log, **options)
                status = follow(driver, record, config, keep, log)
            finally:
                ignore_signals()  # a Ctrl-C while they end must not leave anything running
                record.end_descendants()
        if status:
            # Of a full disk torch says no more than "iostream error".
            full = checkpoints.is_dir() and shutil.disk_usage(checkpoints).free < FULL_BYTES
            why = f" (no room left in {checkpoints}; the checkpoints before are kept)" if full else ""
            print(f"training failed: {cause(log_path, log_start)}{why}\n  see {log_path}", file=sys.stderr)
            return 1
        step = max(complete_checkpoints(checkpoints), default=0)
        if (folder / STOP).exists() and step != total:
            print(f"stopped as asked, saved at step {step}; the same command continues", file=sys.stderr)
            return 1
        print(f"training is done, {len([m for m in read_metrics(metrics_path).values() if has_training(m)])} steps")
        return 0


def ignore_signals() -> None:
    """Let no signal that would stop the run disturb its end."""
    for number in STOPPING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def interrupt(number: int, frame) -> None:
    """Turn a signal into an exception, so that every `finally` runs, undisturbed by a second one."""
    ignore_signals()
    raise Interrupted(signal.Signals(number).name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_intermixed_args()
    os.chdir(ROOT)
    for number in STOPPING_SIGNALS:
        signal.signal(number, interrupt)
    try:
        config, comparisons = compare(args.config, args.overrides, device(), args.allow)
        require_paper(comparisons)
        use_wandb(config)
        preflight.check(config)
        return train(config)
    except (RuntimeError, OSError) as error:
        print(f"recipe.train: {error}", file=sys.stderr)
        return 1
    except Interrupted as error:
        print(f"\ninterrupted by {error}; the same command continues from the last checkpoint", file=sys.stderr)
        return 1


if __name__ == "__main__":
    run_command(main)
