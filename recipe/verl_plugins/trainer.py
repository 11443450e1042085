"""verl's synchronous trainer, which a file can ask to save and end: `touch outputs/RUN/stop`.

verl 0.9.1's V1 trainer saves at fixed steps alone; the older one has `should_save_ckpt_esi` for this.
A job that is near its time limit would lose the steps since the last of them.
"""

from pathlib import Path

import ray
from verl.trainer.main_ppo import TaskRunnerV1
from verl.trainer.ppo import metric_utils
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from recipe.checkpoints import STOP

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


metric_utils.bootstrap_metric = bootstrap_once


@register_trainer("stoppable")
class StoppableTrainer(PPOTrainerSync):
    """PPOTrainerSync whose loop ends after the step in which the file appears, with a checkpoint of that step."""

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
