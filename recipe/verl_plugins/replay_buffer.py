"""verl's replay buffers with batches in the order of their prompts, and metrics of what was generated.

verl 0.9 gives the trainer responses in the order in which they finished, shortest first, and splits that into
mini-batches: the first update of a step would see the short responses and the last one the long ones. verl 0.4 split
the batch in the order of its prompts, and so does this (recipe/FIDELITY.md, L2). verl logs what a reward returns in
validation alone, and neither responses that failed, preemptions, when responses finished, nor the tokens of those that
it throws away.
"""

import math
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

    most_thrown_away = 0  # prompts of a step; more end the run, as nothing else would: each refill looks like progress

    def __init__(self, *args, sampler_kwargs, **kwargs):
        options = dict(sampler_kwargs)
        self.group_size = options.pop("n", 1)
        self.seen: dict[str, float] = {}  # key of a response that is there: when a poll first found it (seconds)
        self.thrown_prompts = self.thrown_tokens = 0  # of this step
        super().__init__(*args, sampler_kwargs=sampler_kwargs, **options, **kwargs)

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        now = time.monotonic()
        self.seen = {key: self.seen.get(key, now) for key in self.partitions[partition_id]}
        return super()._wait_for_next_poll(partition_id, last_debug_time)

    def _evict_terminal_groups(self, *args):
        if 0 < self.most_thrown_away < self.thrown_prompts:
            raise RuntimeError(
                f"algorithm.filter_groups.max_num_gen_batches: {self.thrown_prompts} prompts of one step were thrown "
                "away; raise it, or leave out problems that are too easy or too hard"
            )
        return super()._evict_terminal_groups(*args)

    def _clear_groups(self, partition_id: str, uids: set[str]) -> None:
        """Count what is thrown away: groups that are filtered, failed, stale, or left over when the batch is full."""
        tags = [tag for key, tag in self.partitions[partition_id].items() if key.split("_")[0] in uids]
        self.thrown_prompts += len(uids)
        self.thrown_tokens += sum(tag["response_len"] for tag in tags)
        super()._clear_groups(partition_id, uids)

    def _select_prompt_uids(self, partition_id: str, sampleable_keys: set[str], batch_size: int):
        """Select the first of the data loader's prompts; verl selects in the order of a set of random names."""
        in_order = [uid for uid in self.prompt_global_steps[partition_id] if uid in sampleable_keys]
        return super()._select_prompt_uids(partition_id, in_order, batch_size)

    def sample(self, global_steps: int, partition_id: str, batch_size: int):
        self.thrown_prompts = self.thrown_tokens = 0
        started_at = time.monotonic()
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
            seen = [self.seen.get(key, finished_at) for key in batch.keys]
            metrics["timing_s/gen_tail"] = tail_seconds(seen, started_at, finished_at)
            metrics["rollout/generated_prompts"] = batch_size + self.thrown_prompts
            used = sum(tag["response_len"] for tag in batch.tags)
            metrics["rollout/generated_tokens"] = used + self.thrown_tokens
            if self.filter_groups_metric:
                metrics |= filtered(metrics)
        return batch, metrics


class ReplayBufferAsync(ReplayBuffer, replay_buffer.ReplayBufferAsync):
    """The same for the asynchronous trainer: first in, first out.

    verl takes the prompts that finish first. Here a step waits for the oldest ones, so that no response is more than
    `num_warmup_batches` steps old, and none is used earlier because it is short.
    """

    def _has_enough_samples(self, global_steps: int, partition_id: str, batch_size: int, sampleable_keys: set[str]):
        steps = self.prompt_global_steps[partition_id]
        oldest = sorted(steps, key=steps.__getitem__)[:batch_size]
        enough = super()._has_enough_samples(global_steps, partition_id, batch_size, sampleable_keys)
        return enough and sampleable_keys.issuperset(oldest)


def filtered(metrics: dict) -> dict[str, int]:
    """Tell the prompts that verl filtered by what their responses had in common, from its own metrics.

    A group's value is the configured metric, 0 or 1 for an accuracy, -1 or 1 for the reward.
    """
    counts = metrics.get(replay_buffer.DAPO_FILTERED_REWARD_COUNTS_KEY, {})
    correct = sum(count for value, count in counts.items() if value > 0)
    return {
        "rollout/filtered_correct": correct,
        "rollout/filtered_incorrect": sum(counts.values()) - correct,
        "rollout/discarded_prompts": metrics.get("training/filter_groups/discarded_surplus_samples", 0),
    }


def losses(keys: list[str], prompts: int, group_size: int) -> dict[str, int]:
    """Count the prompts without any response, and those with fewer than `group_size`, by the keys of responses."""
    sessions = {tuple(key.rsplit("_", 2)[:2]) for key in keys}  # an agent loop may return several outputs
    groups = Counter(uid for uid, _ in sessions)
    short = sum(count < group_size for count in groups.values())
    return {"rollout/short_groups": short, "rollout/lost_prompts": prompts - len(groups)}


def tail_seconds(seen: list[float], started_at: float, finished_at: float) -> float:
    """Return how long a step waited for the last tenth of its responses, given when each was first seen (seconds)."""
    nearly_all = sorted(seen)[math.ceil(NEARLY_ALL * len(seen)) - 1]
    return finished_at - max(started_at, nearly_all)


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
