"""verl's replay buffer with batches in the order of their prompts and what the reward returns in the metrics.

verl 0.9 gives the trainer responses in the order in which they finished, shortest first, and splits that into
mini-batches: the first update of a step would see the short responses and the last one the long ones. verl 0.4 split
the batch in the order of its prompts, and so does this (recipe/FIDELITY.md, L2). verl logs what a reward returns in
validation alone.
"""

from collections import defaultdict

import transfer_queue as tq
from verl.trainer.ppo.v1 import replay_buffer

from recipe.heartbeat import Heartbeat


class ReplayBuffer(replay_buffer.ReplayBuffer):
    """A `trainer.v1.sampler.custom_sampler` for any verl recipe with the synchronous trainer.

    `sampler_kwargs.poll_interval` is how often it looks for finished rollouts, in seconds. verl's class takes 2 s
    whatever the config sets, as long as a whole generation of the demo.
    """

    heartbeat: Heartbeat | None = None  # the trainer's, set by `ShownTrainer`

    def __init__(self, *args, sampler_kwargs, **kwargs):
        super().__init__(*args, sampler_kwargs=sampler_kwargs, **sampler_kwargs, **kwargs)

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        if self.heartbeat:
            responses, prompts = self.partitions[partition_id], self.finished_keys[partition_id]
            done = f"{len(responses)} responses, all of {len(prompts)} prompts"
            self.heartbeat.set(**self.heartbeat.state | {"done": done})
        return super()._wait_for_next_poll(partition_id, last_debug_time)

    def sample(self, global_steps: int, partition_id: str, batch_size: int):
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        place = {uid: i for i, uid in enumerate(self.prompt_global_steps[partition_id])}

        def position(i: int) -> tuple[int, int, int]:
            uid, session, index = batch.keys[i].rsplit("_", 2)
            return place[uid], int(session), int(index)

        batch.reorder(sorted(range(len(batch)), key=position))
        if partition_id == "train" and batch.keys:
            data = tq.kv_batch_get(keys=batch.keys, partition_id=partition_id, select_fields=["extra_fields"])
            fields = [getattr(value, "data", value) for value in data["extra_fields"]]
            metrics |= reward_means([field.get("reward_extra_info", {}) for field in fields])
        return batch, metrics


def reward_means(infos: list[dict]) -> dict[str, float]:
    """Average what a reward returned per response: `reward/<key>` of numbers, `reward/<key>_empty` of text."""
    values: dict[str, list[float]] = defaultdict(list)
    for info in infos:
        for key, value in info.items():
            if isinstance(value, str):
                values[f"reward/{key}_empty"].append(not value)
            elif isinstance(value, (bool, int, float)) or hasattr(value, "item"):  # others' rewards may return anything
                values[f"reward/{key}"].append(float(value))
    return {key: sum(numbers) / len(numbers) for key, numbers in values.items()}
