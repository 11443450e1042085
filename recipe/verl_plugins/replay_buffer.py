"""verl's replay buffer with batches in the order of their prompts and what the reward returns in the metrics.

verl 0.9 gives the trainer responses in the order in which they finished, shortest first, and splits that into
mini-batches: the first update of a step would see the short responses and the last one the long ones. verl 0.4 split
the batch in the order of its prompts, and so does this (recipe/FIDELITY.md, L2). verl logs what a reward returns in
validation alone, and neither responses that failed, preemptions, nor when responses finished.
"""

import time
from collections import Counter, defaultdict

import transfer_queue as tq
from verl.trainer.ppo.v1 import replay_buffer

from recipe.verl_plugins.preemptions import preemptions

NEARLY_ALL = 0.9  # of a step's responses; what comes then is the wait for the longest


class ReplayBuffer(replay_buffer.ReplayBuffer):
    """A `trainer.v1.sampler.custom_sampler` for any verl recipe with the synchronous trainer.

    `sampler_kwargs.poll_interval` is how often it looks for finished rollouts, in seconds. verl's class takes 2 s
    whatever the config sets, as long as a whole generation of the demo. `sampler_kwargs.n` is the responses per prompt.
    """

    def __init__(self, *args, sampler_kwargs, **kwargs):
        options = dict(sampler_kwargs)
        self.group_size = options.pop("n", 1)
        self.polls: list[tuple[float, int]] = []  # time in seconds, responses that had finished
        super().__init__(*args, sampler_kwargs=sampler_kwargs, **options, **kwargs)

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        self.polls.append((time.monotonic(), len(self.partitions[partition_id])))
        return super()._wait_for_next_poll(partition_id, last_debug_time)

    def sample(self, global_steps: int, partition_id: str, batch_size: int):
        self.polls.clear()
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        finished_at = time.monotonic()
        place = {uid: i for i, uid in enumerate(self.prompt_global_steps[partition_id])}

        def position(i: int) -> tuple[int, int, int]:
            uid, session, index = batch.keys[i].rsplit("_", 2)
            return place[uid], int(session), int(index)

        batch.reorder(sorted(range(len(batch)), key=position))
        if partition_id == "train" and batch.keys:
            data = tq.kv_batch_get(keys=batch.keys, partition_id=partition_id, select_fields=["extra_fields"])
            fields = [getattr(value, "data", value) for value in data["extra_fields"]]
            metrics |= reward_means([field.get("reward_extra_info", {}) for field in fields])
            metrics |= losses(batch.keys, batch_size, self.group_size)
            metrics["rollout/preemptions"] = sum(map(preemptions, fields)) / len(fields)
            metrics["timing_s/gen_tail"] = tail_seconds(self.polls, finished_at, len(batch))
        return batch, metrics


def losses(keys: list[str], prompts: int, group_size: int) -> dict[str, int]:
    """Count the prompts without any response, and those with fewer than `group_size`, by the keys of responses."""
    sessions = {tuple(key.rsplit("_", 2)[:2]) for key in keys}  # an agent loop may return several outputs
    groups = Counter(uid for uid, _ in sessions)
    short = sum(count < group_size for count in groups.values())
    return {"rollout/short_groups": short, "rollout/lost_prompts": prompts - len(groups)}


def tail_seconds(polls: list[tuple[float, int]], finished_at: float, responses: int) -> float:
    """Return how long the last tenth of the responses took: from the first poll that found the others, to the end."""
    nearly_done = [at for at, finished in polls if finished >= NEARLY_ALL * responses]
    return finished_at - nearly_done[0] if nearly_done else 0.0


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
