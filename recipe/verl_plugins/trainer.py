"""verl's trainers with a heartbeat, and a stop file that makes them save and exit: `touch outputs/RUN/stop`.

verl 0.9.1's V1 trainers save at fixed steps alone; the older one has `should_save_ckpt_esi` for this.
A job that is near its time limit would lose the steps since the last of them.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import ray
import transfer_queue as tq
from verl.trainer.main_ppo import TaskRunnerV1
from verl.trainer.ppo import metric_utils
from verl.trainer.ppo.core_algos import agg_loss
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from recipe.checkpoints import STOP
from recipe.heartbeat import SAVE, START, TRAINER, VALIDATION, Heartbeat
from recipe.verl_plugins import pass_at_k  # noqa: F401, it patches verl
from recipe.verl_plugins.node_memory import NodeMemory
from recipe.verl_plugins.replay_buffer import ReplayBuffer

# verl's methods with which a phase of a run begins; each lasts until the next begins.
PHASES = {
    "_setup": START,
    "_init_resource_pool_mgr": START,  # after the data loader
    "_load_checkpoint": START,  # after actor and engines
    "on_init_end": START,  # the first weight transfer
    "_validate": VALIDATION,
    "on_sample_begin": "generation",
    "_compute_old_log_prob": "old log-probs",
    "_update_actor": "update",
    "_save_checkpoint": SAVE,
    "on_step_end": "weight transfer",
    "_compute_metrics": "metrics",
}
BOOTSTRAP = metric_utils.bootstrap_metric
ESTIMATES: dict[str, list] = {}


def bootstrap_once(**options) -> list[tuple[float, float]]:
    """Stand in for verl's bootstrap, with the same numbers.

    A validation estimates best@n, worst@n and maj@n from a thousand samples for every number of every prompt. Most
    repeat each other, for the reward, its accuracy and its variants differ in scale at most.
    """
    key = repr(options)
    if key not in ESTIMATES:
        ESTIMATES[key] = BOOTSTRAP(**options)
    return ESTIMATES[key]


def mean_over_tokens(loss_mat, loss_mask, **aggregation):
    """Stand in for verl's aggregation of the entropy, a metric, which is the loss's: Dr. GRPO would log its sums."""
    return agg_loss(loss_mat, loss_mask, "token-mean")


metric_utils.bootstrap_metric = bootstrap_once
trainer_base.agg_loss = mean_over_tokens


class Supervised(PPOTrainer):
    """A mixin that writes the trainer's phase, and in a generation the responses that are there, for the supervisor.

    The loop ends after the step in which the file appears, with a checkpoint of that step.
    """

    def __init__(self, config):
        self.heartbeat, self.global_steps = Heartbeat(TRAINER), 0
        super().__init__(config)
        if hasattr(self.replay_buffer, "_wait_for_next_poll"):  # another class may wait in its own way
            self.wait, self.replay_buffer._wait_for_next_poll = self.replay_buffer._wait_for_next_poll, self.show_poll

    def _build_replay_buffer(self):
        """Give a class of this recipe what verl gives its own alone: which groups to filter and to refill."""
        buffer, batch = super()._build_replay_buffer(), self.config.data.train_batch_size
        filters, sampler = self.config.algorithm.filter_groups, self.config.trainer.v1.sampler
        if isinstance(buffer, ReplayBuffer):
            buffer.filter_groups_metric = self._resolve_filter_groups_metric()
            buffer.sync_refill_failed_groups = sampler.sync_refill_failed_groups
            buffer.max_inflight_gen_batches = filters.max_inflight_gen_batches
            buffer.train_batch_size, buffer.gen_batch_size = batch, 1
            buffer.most_thrown_away = filters.max_num_gen_batches * batch
        return buffer

    @functools.cached_property
    def node_memory(self) -> NodeMemory:
        return NodeMemory()

    def show_poll(self, partition_id: str, *args):
        """Show how many responses are there, and all responses of how many prompts, then wait for the next poll."""
        responses, prompts = (
            len(keys[partition_id]) for keys in (self.replay_buffer.partitions, self.replay_buffer.finished_keys)
        )
        done = f"{responses} responses, all of {prompts} prompts"
        self.heartbeat.set(**self.heartbeat.state | {"done": done})
        return self.wait(partition_id, *args)

    def on_validate_begin(self) -> None:
        ESTIMATES.clear()  # of the validation before
        super().on_validate_begin()

    def step(self, metrics: dict, *args, **kwargs):
        """Do one step, then look for the file; `PPOTrainer.fit` decides next whether to save."""
        batch = super().step(metrics, *args, **kwargs)
        metrics.update(self.node_memory.fullest())
        if (Path(self.config.trainer.default_local_dir).parent / STOP).exists():
            self.config.trainer.save_freq = 1
            self.total_training_steps = self.global_steps
        return batch


def shown(name: str, phase: str) -> Callable:
    """Make the mixin's method of that name, with which a phase begins."""

    def method(self, *args, **kwargs):
        self.heartbeat.set(phase=phase, step=self.global_steps, call=name)
        return getattr(super(Supervised, self), name)(*args, **kwargs)

    return method


for name, phase in PHASES.items():
    setattr(Supervised, name, shown(name, phase))


class SyncTrainer(Supervised, PPOTrainerSync):
    """Every response comes from the policy that learns from it."""


class AsyncTrainer(Supervised, PPOTrainerColocateAsync):
    """The next step's prompts are generated with this one's; at its end verl interrupts them, and then continues."""

    def _load_checkpoint(self):
        """Drop the responses that the checkpoint's own step was trained on, which verl saves with the unfinished."""
        super()._load_checkpoint()
        tags = (tq.kv_list("train") or {}).get("train", {})
        if trained := [key for key in tags if key.split("_")[0] not in tags]:
            tq.kv_clear(keys=trained, partition_id="train")


TRAINER_REGISTRY.update(sync=SyncTrainer, colocate_async=AsyncTrainer)


class TaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    """verl's task runner in a process that has imported this module, and so with the trainers above."""


RemoteTaskRunner = ray.remote(TaskRunner)
