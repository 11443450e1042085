"""Everything a run needs, checked before anything heavy starts.

Each function raises a ValueError of one line: the problem and its fix.
"""

import inspect
import os
import runpy
import shutil
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from common import machine
from common.models import check_model, count_parameters
from data_prep.rows import open_rows
from recipe import attention
from recipe.checkpoints import complete_checkpoints
from recipe.memory import demand

# CPUs that verl's actors hold for as long as they live, on top of one that each actor needs to start.
CPUS_PER_RANK = 3  # verl.single_controller.ray.ResourcePoolManager.max_colocate_count
CPUS_OF_TRANSFER_QUEUE = 1  # transfer_queue.controller.TransferQueueController
CPUS_TO_START_AN_ACTOR = 1

BYTES_PER_PARAMETER = 12  # a checkpoint holds fp32 weights and two Adam moments
COUNTS = (
    "trainer.nnodes",
    "trainer.n_gpus_per_node",
    "trainer.total_epochs",
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.val_kwargs.n",
    "actor_rollout_ref.rollout.custom.validation_response_length",
)


def check(config: DictConfig) -> None:
    check_config(config)
    check_machine(config)


def check_config(config: DictConfig) -> None:
    """Check what can be seen without the run's files and machines."""
    check_counts(config)
    check_resume(config)
    check_reward(config)
    check_batch(config)
    check_lengths(config)
    attention.check(config)


def check_machine(config: DictConfig) -> None:
    """Check what must be on this machine, or reachable from it."""
    check_data(config)
    check_model(config.actor_rollout_ref.model.path, window(config))
    check_nodes(config)
    check_ray_cpus(config)
    check_disk(config)


def run_folder(config: DictConfig) -> Path:
    """The name depends on the experiment alone, so that a relaunch finds the folder."""
    return Path(config.trainer.default_local_dir).parent


def as_list(value: str | ListConfig | list) -> list[str]:
    """Make a list of a config value that may be one string; ValueError if it is neither."""
    if not isinstance(value, (str, ListConfig, list)):
        raise ValueError(f"expected a file or a list of files, got {value}")
    return [value] if isinstance(value, str) else list(value)


def check_counts(config: DictConfig) -> None:
    for key in COUNTS:
        value = OmegaConf.select(config, key)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{key}={value}: must be an integer of at least 1")


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


def check_nodes(config: DictConfig) -> None:
    """Check this machine; `recipe.nodes` checks the nodes of a Ray cluster."""
    if os.environ.get("RAY_ADDRESS"):
        return
    there = int(os.environ.get("SLURM_JOB_NUM_NODES", 1))
    if config.trainer.nnodes > there:
        raise ValueError(
            f"the run needs {config.trainer.nnodes} nodes and has {there}; set RAY_ADDRESS to a Ray cluster, "
            f"submit it with sbatch --nodes {config.trainer.nnodes}, or set trainer.nnodes={there}"
        )
    if config.trainer.device == "cuda" and (lacks := machine.lacks(demand_here(config))):
        raise ValueError(lacks[0])


def demand_here(config: DictConfig) -> machine.Demand:
    each = config.trainer.n_gpus_per_node
    any_gpus = bool(os.environ.get("RAY_ADDRESS"))
    return machine.Demand(each, **demand(config, each * config.trainer.nnodes), any_gpus=any_gpus)


def check_gpus_free(config: DictConfig) -> None:
    """Check that nothing else uses this machine's GPUs, once the stale processes of this run have ended."""
    if config.trainer.device != "cuda" or os.environ.get("RAY_ADDRESS"):
        return
    if taken := machine.in_use(demand_here(config)):
        raise ValueError(taken[0])


def check_data(config: DictConfig) -> None:
    """Check that every parquet file is in verl's format, and that the training set fills a batch and the run."""
    for path in as_list(config.data.val_files):
        open_rows(path)
    rows = sum(open_rows(path).metadata.num_rows for path in as_list(config.data.train_files))
    batch, epochs = config.data.train_batch_size, config.trainer.total_epochs
    if rows < batch:
        raise ValueError(f"{rows} training rows do not fill a batch; lower data.train_batch_size to {rows} or less")
    steps = rows // batch * epochs
    if steps < (config.trainer.total_training_steps or 0):
        raise ValueError(
            f"{rows} training rows and trainer.total_epochs={epochs} end after {steps} steps, "
            f"before trainer.total_training_steps={config.trainer.total_training_steps}; raise trainer.total_epochs"
        )


def check_reward(config: DictConfig) -> None:
    """Check that the reward loads and has the configured options: `**kwargs` would swallow mistyped ones."""
    reward = config.reward.custom_reward_function
    if not reward.path or reward.path.startswith("pkg://"):
        return
    path = Path(reward.path.removeprefix("file://"))
    if not path.is_file():
        raise ValueError(f"reward {path}: no such file; set reward.custom_reward_function.path")
    try:
        names = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:  # whatever a user's file raises
        raise ValueError(f"reward {path}: cannot be loaded: {type(error).__name__}: {error}") from error
    function = names.get(reward.name)
    if not callable(function):
        raise ValueError(f"reward {path}: has no function {reward.name}; set reward.custom_reward_function.name")
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for option in reward.get("reward_kwargs") or {}:
        if option not in known:
            raise ValueError(f"reward {path}: {reward.name} has no option {option}; there are {', '.join(known)}")


def check_batch(config: DictConfig) -> None:
    """Check that batch sizes divide, as verl's trainer asserts minutes into a run."""
    sampler = config.trainer.v1.sampler
    if sampler.custom_sampler.path and (config.algorithm.filter_groups.enable or sampler.sync_refill_failed_groups):
        raise ValueError(
            "only verl's own replay buffer can filter or refill groups; "
            "set trainer.v1.sampler.custom_sampler.path=null as well, and see recipe/FIDELITY.md, L2"
        )
    batch, mini = config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size
    if mini > batch:
        raise ValueError(f"actor.ppo_mini_batch_size={mini} is larger than data.train_batch_size={batch}")
    if batch % mini:
        raise ValueError(f"data.train_batch_size={batch} is not a multiple of actor.ppo_mini_batch_size={mini}")
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    responses = mini * config.actor_rollout_ref.rollout.n
    if responses % ranks:
        raise ValueError(f"a mini-batch of {responses} responses does not divide by {ranks} ranks")


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
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
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


def check_disk(config: DictConfig) -> None:
    """Check the free space for what is missing of the checkpoints that are kept, and for the one being written."""
    count = count_parameters(config.actor_rollout_ref.model.path)
    if count is None or config.trainer.save_freq <= 0:
        return
    kept = (config.trainer.max_actor_ckpt_to_keep or 1) + 1  # and the best
    folder = Path(config.trainer.default_local_dir)
    missing = max(1, kept + 1 - len(complete_checkpoints(folder)))
    needed = missing * count * BYTES_PER_PARAMETER
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ValueError(
            f"{folder}: {free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB needed for {missing} checkpoints; "
            "free some or set trainer.default_local_dir"
        )
