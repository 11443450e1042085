"""verl's synchronous trainer, which shows what it does, and which a file can ask to save: `touch outputs/RUN/stop`.

verl 0.9.1's V1 trainer saves at fixed steps alone; the older one has `should_save_ckpt_esi` for this.
A job that is near its time limit would lose the steps since the last of them.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import ray
from verl.trainer.main_ppo import TaskRunnerV1
from verl.trainer.ppo import metric_utils
from verl.trainer.ppo.core_algos import agg_loss
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from recipe.checkpoints import STOP
from recipe.heartbeat import SAVE, START, TRAINER, VALIDATION, Heartbeat

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


class ShownTrainer(PPOTrainerSync):
    """PPOTrainerSync that writes its phase, and in a generation the responses that are there, for the supervisor."""

    def __init__(self, config):
        self.heartbeat, self.global_steps = Heartbeat(TRAINER), 0
        super().__init__(config)
        if hasattr(self.replay_buffer, "_wait_for_next_poll"):  # another class may wait in its own way
            self.wait, self.replay_buffer._wait_for_next_poll = self.replay_buffer._wait_for_next_poll, self.show_poll

    def show_poll(self, partition_id: str, *args):
        """Show how many responses are there, and all responses of how many prompts, then wait for the next poll."""
        responses, prompts = (
            len(keys[partition_id]) for keys in (self.replay_buffer.partitions, self.replay_buffer.finished_keys)
        )
        done = f"{responses} responses, all of {prompts} prompts"
        self.heartbeat.set(**self.heartbeat.state | {"done": done})
        return self.wait(partition_id, *args)


def shown(method: Callable, phase: str) -> Callable:
    """Wrap a method of the trainer with which a phase begins."""

    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        self.heartbeat.set(phase=phase, step=self.global_steps, call=method.__name__)
        return method(self, *args, **kwargs)

    return wrapped


for name, phase in PHASES.items():
    setattr(ShownTrainer, name, shown(getattr(PPOTrainerSync, name), phase))


@register_trainer("stoppable")
class StoppableTrainer(ShownTrainer):
    """The trainer above, whose loop ends after the step in which the file appears, with a checkpoint of that step."""

    def __init__(self, config):
        config.trainer.v1.trainer_mode = "sync"  # verl saves more in every mode of another name
        super().__init__(config)

    def step(self, *args, **kwargs):
        """Do one step, then look for the file; `PPOTrainer.fit` decides next whether to save."""
        batch = super().step(*args, **kwargs)
        if (Path(self.config.trainer.default_local_dir).parent / STOP).exists():
            self.config.trainer.save_freq = 1
            self.total_training_steps = self.global_steps
        return batch

    def _validate(self) -> dict[str, float]:
        ESTIMATES.clear()  # of the validation before
        return super()._validate()


class TaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    """verl's task runner with the trainer above."""

    def run(self, config):
        """Run the training, as `TaskRunnerV1.run` does."""
        config.trainer.v1.trainer_mode = "stoppable"
        super().run(config)


RemoteTaskRunner = ray.remote(TaskRunner)
