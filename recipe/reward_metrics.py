"""The reward's own numbers in the training metrics, which verl 0.9.1 logs for validation alone."""

from collections import defaultdict

import transfer_queue as tq
from verl.trainer.ppo.v1 import replay_buffer


def means(infos: list[dict]) -> dict[str, float]:
    """Return `reward/<key>` to the mean of each number that a reward returned, for text the share that is empty."""
    values = defaultdict(list)
    for info in infos:
        for key, value in info.items():
            if isinstance(value, str):
                values[f"reward/{key}_empty"].append(not value)
            elif isinstance(value, (bool, int, float)) or hasattr(value, "item"):  # others' rewards may return anything
                values[f"reward/{key}"].append(float(value))
    return {key: sum(numbers) / len(numbers) for key, numbers in values.items()}


class ReplayBuffer(replay_buffer.ReplayBuffer):
    """verl's replay buffer, named by `trainer.v1.sampler.custom_sampler`; its `sample` may add metrics to a step's."""

    def sample(self, global_steps: int, partition_id: str, batch_size: int):
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        if partition_id == "train" and batch.keys:
            data = tq.kv_batch_get(keys=batch.keys, partition_id=partition_id, select_fields=["extra_fields"])
            fields = [getattr(value, "data", value) for value in data["extra_fields"]]
            metrics |= means([field.get("reward_extra_info", {}) for field in fields])
        return batch, metrics
