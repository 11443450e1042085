"""Everything a run needs, checked before anything heavy starts.

Each function raises a ValueError of one line: the problem and its fix.
"""

import contextlib
import functools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from common import machine
from common.models import check_model, weight_sizes
from common.processes import temporary_root
from data_prep.check_rows import check_rows
from recipe import attention, reward_file
from recipe.checkpoints import complete_checkpoints
from recipe.compose import verl_config_folder
from recipe.distillation import TEACHER, check_distillation, check_teacher, nodes_and_gpus, teacher_gpus
from recipe.memory import demand

# CPUs that verl's actors hold for as long as they live, on top of one that each actor needs to start.
CPUS_PER_RANK = 3  # verl.single_controller.ray.ResourcePoolManager.max_colocate_count
CPUS_OF_TRANSFER_QUEUE = 1  # transfer_queue.controller.TransferQueueController
CPUS_TO_START_AN_ACTOR = 1

ACTOR = "actor_rollout_ref.actor"
OUR_BUFFERS = "pkg://recipe.verl_plugins.replay_buffer"
OUR_LIBRARY = "recipe.verl_plugins.attention"
BUFFERS = {"sync": "ReplayBuffer", "colocate_async": "ReplayBufferAsync"}  # by trainer.v1.trainer_mode
# Keys whose value verl looks up only once it trains: the file of verl with the names, and what a name is there.
NAMES = {
    "algorithm.adv_estimator": ("trainer/ppo/core_algos.py", r'^    [A-Z_]+ = "(\w+)"$'),
    f"{ACTOR}.policy_loss.loss_mode": ("trainer/ppo/core_algos.py", r'^@register_policy_loss\("(\w+)"\)'),
    "trainer.logger": ("utils/tracking.py", r'(?:^        |== )"(\w+)"[,:]$'),
}
BYTES_PER_PARAMETER = 12  # a checkpoint holds fp32 weights and two Adam moments


def check(config: DictConfig) -> None:
    check_config(config)
    check_machine(config)


@contextlib.contextmanager
def about(key: str) -> Iterator[None]:
    """Put a key before the line of a ValueError, which is also made of what the file system raises."""
    try:
        yield
    except (ValueError, OSError) as error:  # of a file that may not be read, or a name that is too long
        raise ValueError(f"{key}: {error}") from error


def check_config(config: DictConfig) -> None:
    """Check what can be seen without the run's files and machines."""
    check_resume(config)
    check_names(config)
    with about(f"{reward_file.KEY}.path"):
        reward_file.load(config)
    check_batch(config)
    check_sampling(config)
    check_lengths(config)
    check_distillation(config)
    attention.check(config)


def check_machine(config: DictConfig) -> None:
    """Check what must be on this machine, or reachable from it."""
    check_data(config)
    with about("actor_rollout_ref.model.path"):
        check_model(config.actor_rollout_ref.model.path, window(config))
        weights = weight_sizes(config.actor_rollout_ref.model.path)
    check_bucket(config, weights)
    with about(f"{TEACHER}.model_path"):
        check_teacher(config)
    check_nodes(config)
    check_ray_cpus(config)
    temporary_root()
    with about("trainer.default_local_dir"):
        check_folder(config, sum(weights))


def run_folder(config: DictConfig) -> Path:
    """The name depends on the experiment alone, so that a relaunch finds the folder."""
    return Path(config.trainer.default_local_dir).parent


def as_list(value: str | ListConfig | list) -> list[str]:
    """Make a list of a config value that may be one string."""
    return [value] if isinstance(value, str) else list(value)


def check_resume(config: DictConfig) -> None:
    folder, mode = config.trainer.default_local_dir, config.trainer.resume_mode
    if Path(folder).name != "checkpoints":
        raise ValueError(
            f"trainer.default_local_dir={folder}: must end in /checkpoints; the folder above it is the run's"
        )
    if mode != "auto":
        raise ValueError(
            f"trainer.resume_mode={mode}: only auto is supported; "
            "give the run another trainer.experiment_name to start afresh"
        )


@functools.cache
def names_of_verl(key: str) -> list[str]:
    """Read from verl's source what it registers for a key of NAMES: its import takes ten seconds."""
    file, pattern = NAMES[key]
    return re.findall(pattern, (verl_config_folder().parents[1] / file).read_text(), re.MULTILINE)


def check_names(config: DictConfig) -> None:
    others = config.actor_rollout_ref.model.external_lib != OUR_LIBRARY or "VERL_USE_EXTERNAL_MODULES" in os.environ
    for key in NAMES:
        if key != "trainer.logger" and others:
            continue  # another module may register more
        for name in as_list(OmegaConf.select(config, key)):
            if name not in names_of_verl(key):
                raise ValueError(f"{key}: verl has no {name}; use one of {', '.join(names_of_verl(key))}")


def check_nodes(config: DictConfig) -> None:
    """Check this machine; `recipe.nodes` checks the nodes of a Ray cluster."""
    if os.environ.get("RAY_ADDRESS"):
        return
    needed, there = nodes_and_gpus(config)[0], int(os.environ.get("SLURM_JOB_NUM_NODES", 1))
    if needed > there:
        raise ValueError(
            f"the run needs {needed} nodes and has {there}; set RAY_ADDRESS to a Ray cluster, "
            f"submit it with sbatch --nodes {needed}, or lower trainer.nnodes"
        )
    if config.trainer.device == "cuda" and (lacks := machine.lacks(demand_here(config))):
        raise ValueError(lacks[0])


def demand_here(config: DictConfig) -> machine.Demand:
    ranks, any_gpus = config.trainer.n_gpus_per_node * config.trainer.nnodes, bool(os.environ.get("RAY_ADDRESS"))
    gpus = nodes_and_gpus(config)[1]
    others = gpus - config.trainer.n_gpus_per_node
    return machine.Demand(gpus, **demand(config, ranks), others=others, any_gpus=any_gpus)


def check_gpus_free(config: DictConfig) -> None:
    """Check that nothing else uses this machine's GPUs, once the stale processes of this run have ended."""
    if config.trainer.device != "cuda" or os.environ.get("RAY_ADDRESS"):
        return
    if taken := machine.in_use(demand_here(config)):
        raise ValueError(taken[0])


def check_data(config: DictConfig) -> None:
    """Check every row of the files, and that the training set fills a batch and the run."""
    if config.data.custom_cls.path or config.data.prompt_key != "prompt":
        return  # rows of another form, which only their own class can check
    score = reward_file.load(config) if reward_file.is_ours(config) else None  # others may take more than text
    with about("data.val_files"):
        for path in as_list(config.data.val_files):
            check_rows(path, score)
    with about("data.train_files"):
        rows = sum(check_rows(path, score) for path in as_list(config.data.train_files))
    if 0 < config.data.train_max_samples < rows:
        rows = config.data.train_max_samples
    batch, epochs = config.data.train_batch_size, config.trainer.total_epochs
    if rows < batch:
        raise ValueError(
            f"data.train_files: {rows} rows do not fill a batch; lower data.train_batch_size to {rows} or less"
        )
    steps = rows // batch * epochs
    if steps < (config.trainer.total_training_steps or 0):
        raise ValueError(
            f"{rows} training rows and trainer.total_epochs={epochs} end after {steps} steps, "
            f"before trainer.total_training_steps={config.trainer.total_training_steps}; raise trainer.total_epochs"
        )


def check_batch(config: DictConfig) -> None:
    """Check that batch sizes divide, as verl's trainer asserts minutes into a run."""
    batch, mini = config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size
    if mini > batch:
        raise ValueError(f"{ACTOR}.ppo_mini_batch_size={mini} is larger than data.train_batch_size={batch}")
    if batch % mini:
        raise ValueError(f"data.train_batch_size={batch} is not a multiple of {ACTOR}.ppo_mini_batch_size={mini}")
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    responses = mini * config.actor_rollout_ref.rollout.n
    if responses % ranks:
        raise ValueError(
            f"{ACTOR}.ppo_mini_batch_size={mini}: a mini-batch of {responses} responses does not divide by "
            f"{ranks} ranks; change it or trainer.n_gpus_per_node"
        )


def check_sampling(config: DictConfig) -> None:
    """Check that trainer and replay buffer fit together, and that groups can be filtered by what the reward returns."""
    mode, sampler = config.trainer.v1.trainer_mode, config.trainer.v1.sampler.custom_sampler
    if mode not in BUFFERS:
        raise ValueError(f"trainer.v1.trainer_mode={mode}: not supported; use {' or '.join(BUFFERS)}")
    if sampler.path == OUR_BUFFERS and sampler.name != BUFFERS[mode]:
        raise ValueError(
            f"trainer.v1.sampler.custom_sampler.name={sampler.name}: does not work with "
            f"trainer.v1.trainer_mode={mode}; use {BUFFERS[mode]}"
        )
    filters = config.algorithm.filter_groups
    if not filters.enable:
        return
    if config.actor_rollout_ref.rollout.n == 1:
        raise ValueError(
            "algorithm.filter_groups.enable: the one response of a group cannot differ; "
            "raise actor_rollout_ref.rollout.n, or set it to false"
        )
    known = reward_file.numbers(config)
    if known and filters.metric not in ("reward", *known):
        raise ValueError(
            f"algorithm.filter_groups.metric={filters.metric}: the reward returns no such number; "
            f"use reward or one of {', '.join(known)}"
        )


def check_lengths(config: DictConfig) -> None:
    """Check that the longest sequence fits one GPU's tokens, and with validation's the engine's window."""
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    limits = [("actor_rollout_ref.rollout.max_model_len", rollout.max_model_len, window(config))]
    if actor.use_dynamic_bsz:
        tokens = actor.ppo_max_token_len_per_gpu * actor.ulysses_sequence_parallel_size
        longest = config.data.max_prompt_length + config.data.max_response_length
        limits.append(("actor_rollout_ref.actor.ppo_max_token_len_per_gpu", tokens, longest))
    for key, limit, needed in limits:
        if limit and limit < needed:
            raise ValueError(f"{key} allows {limit} tokens, and prompt plus response may have {needed}; raise it")


def window(config: DictConfig) -> int:
    """Count the tokens of the longest sequence in training or validation: prompt plus response."""
    longer = max(config.data.max_response_length, config.actor_rollout_ref.rollout.custom.validation_response_length)
    return config.data.max_prompt_length + longer


def ray_cpus_needed(config: DictConfig) -> int:
    """Count the logical CPUs without which verl's start waits for ever."""
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node + teacher_gpus(config)
    storage = config.transfer_queue.backend.SimpleStorage.num_data_storage_units
    return ranks * CPUS_PER_RANK + CPUS_OF_TRANSFER_QUEUE + storage + CPUS_TO_START_AN_ACTOR


def check_ray_cpus(config: DictConfig) -> None:
    given, needed = config.ray_kwargs.ray_init.num_cpus, ray_cpus_needed(config)
    if os.environ.get("RAY_ADDRESS") or given is None:
        return  # a cluster has its own number, and `recipe.train` chooses one that is enough
    if config.trainer.nnodes == 1 and given < needed:
        raise ValueError(
            f"Ray has {given} CPUs and the run needs {needed}; set ray_kwargs.ray_init.num_cpus={needed} "
            "(logical CPUs: there may be more than the machine has)"
        )


def check_bucket(config: DictConfig, weights: list[int]) -> None:
    """Check that the largest weight, in fp32, fits the shared memory through which a CPU's rollout gets it."""
    key = "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
    given, needed = config.actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes, 0
    if config.trainer.device == "cpu" and weights:
        needed = -(-4 * max(weights) // 2**20)
    if given < needed:
        raise ValueError(f"{key}={given}: the model's largest weight has {needed} MiB; set it to {needed} or more")


def check_folder(config: DictConfig, parameters: int) -> None:
    """Check the folder, and its free space for the kept checkpoints that are missing and the one being written."""
    folder = Path(config.trainer.default_local_dir)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{there} {'may not be written to' if there.is_dir() else 'is a file'}; set another folder")
    if not parameters or config.trainer.save_freq <= 0:
        return
    kept = (config.trainer.max_actor_ckpt_to_keep or 1) + 1  # and the best
    missing = max(1, kept + 1 - len(complete_checkpoints(folder)))
    needed = missing * parameters * BYTES_PER_PARAMETER
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ValueError(
            f"{folder}: {free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB needed for {missing} checkpoints; "
            "free some or set another folder"
        )
