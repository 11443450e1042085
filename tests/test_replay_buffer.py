"""A batch reaches the trainer in the order of its prompts, although its responses finished in another."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from omegaconf import OmegaConf

from recipe.compose import compose
from recipe.verl_plugins.preemptions import COUNT
from tests.test_processes import wait_until

PROMPTS, RESPONSES, TOKENS = 6, 8, 2
TAG = {"status": "success", "response_len": TOKENS}


def put(queue, key: str, **info) -> None:
    """Put a finished response of two tokens, as an agent loop does; the third of each group was preempted twice."""
    import torch
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    info |= {"score": float(key.endswith("_0_0")), "pred": "" if key.endswith("_1_0") else "7"}
    extra = {"reward_extra_info": info} | ({"kv_transfer_params": {COUNT: 2}} if key.endswith("_2_0") else {})
    response = list_of_dict_to_tensordict([{"responses": torch.ones(TOKENS), "extra_fields": extra}])
    queue.kv_batch_put(keys=[key], partition_id="train", fields=response, tags=[TAG])


def prompts_and_responses(queue) -> tuple[list[str], list[str]]:
    """Register a step's prompts; return their keys, in order, and those of their responses."""
    uids = [f"prompt{i}" for i in random.Random(0).sample(range(100), PROMPTS)]
    waiting = [{"is_prompt": True, "status": "pending", "global_steps": 1} for _ in uids]
    queue.kv_batch_put(keys=uids, partition_id="train", tags=waiting)
    return uids, [f"{uid}_{session}_0" for uid in uids for session in range(RESPONSES)]


def end(queue, uids: list[str], status: str = "finished") -> None:
    for uid in uids:
        queue.kv_put(key=uid, partition_id="train", tag={"status": status})


def build(buffer_class, overrides=()):
    """Build a replay buffer as verl does, from the demo's config."""
    sampler = compose("demo", [*overrides], "cpu").trainer.v1.sampler
    return buffer_class(
        trainer_mode="sync",
        trainer_config=OmegaConf.create(),
        max_off_policy_threshold=sampler.max_off_policy_threshold,
        max_off_policy_strategy=sampler.max_off_policy_strategy,
        sampler_kwargs=sampler.sampler_kwargs,
    )


def sample(queue, buffer) -> tuple[list[str], dict]:
    """Return the keys of a step's batch and its metrics, and empty the queue."""
    batch, metrics = buffer.sample(global_steps=1, partition_id="train", batch_size=PROMPTS)
    queue.kv_clear(partition_id="train", keys=batch.keys)
    assert all(tag["status"] == "success" for tag in batch.tags)
    return batch.keys, metrics


def sampled_keys(queue, buffer_class) -> tuple[list[str], list[str], list[str], dict]:
    """Return keys in the order of the prompts, of completion, and as `buffer_class` samples them; and its metrics."""
    uids, keys = prompts_and_responses(queue)
    finished = random.Random(1).sample(keys, len(keys))
    for key in finished:
        put(queue, key)
    end(queue, uids)
    return keys, finished, *sample(queue, build(buffer_class))


@pytest.mark.slow
def test_batch_is_in_the_order_of_its_prompts(queue):
    from recipe.verl_plugins.replay_buffer import ReplayBuffer

    prompts, finished, sampled, metrics = sampled_keys(queue, ReplayBuffer)
    assert sampled == prompts != finished
    assert metrics == {
        "reward/score": 1 / RESPONSES,
        "reward/pred_empty": 1 / RESPONSES,
        "rollout/short_groups": 0,
        "rollout/lost_prompts": 0,
        "rollout/preemptions": 2 / RESPONSES,
        "timing_s/gen_tail": 0,
        "rollout/generated_prompts": PROMPTS,
        "rollout/generated_tokens": PROMPTS * RESPONSES * TOKENS,
    }


@pytest.mark.slow
def test_failed_responses_and_lost_prompts_are_counted(queue):
    from recipe.verl_plugins.replay_buffer import ReplayBuffer

    uids, keys = prompts_and_responses(queue)
    # All of the first prompt's failed, the last of the second one's, and all but that of the third one's.
    lost = [*keys[:RESPONSES], keys[2 * RESPONSES - 1], *keys[2 * RESPONSES : 3 * RESPONSES - 1]]
    rest = [key for key in keys if key not in lost]
    for key in rest:
        put(queue, key)
    end(queue, uids[:3], "failure")
    end(queue, uids[3:])
    sampled, metrics = sample(queue, build(ReplayBuffer))
    assert sampled == rest
    assert (metrics["rollout/short_groups"], metrics["rollout/lost_prompts"]) == (2, 1)


@pytest.mark.slow
def test_the_wait_for_the_last_responses_is_measured(queue):
    from recipe.verl_plugins.replay_buffer import ReplayBuffer

    interval, wait = 0.05, 0.2
    buffer = build(ReplayBuffer, [f"trainer.v1.sampler.sampler_kwargs.poll_interval={interval}"])
    uids, keys = prompts_and_responses(queue)
    for key in keys[:-1]:
        put(queue, key)
    end(queue, uids[:-1])

    def finish():
        wait_until(lambda: len(buffer.seen) == len(keys) - 1)
        time.sleep(wait)
        put(queue, keys[-1])
        end(queue, uids[-1:])

    started_at = time.monotonic()
    with ThreadPoolExecutor() as pool:
        finishing = pool.submit(finish)
        _, metrics = sample(queue, buffer)
    finishing.result()
    assert wait < metrics["timing_s/gen_tail"] < time.monotonic() - started_at


def test_the_wait_begins_when_nine_tenths_are_there():
    from recipe.verl_plugins.replay_buffer import losses, tail_seconds

    assert tail_seconds([4.0, *[1.0] * 8, 3.0], 0.0, 4.0) == 1.0
    assert tail_seconds([5.0] * 10, 0.0, 5.0) == 0.0
    assert tail_seconds([1.0] * 10, 4.0, 5.0) == 1.0, "they were there before the step: it waited for something else"
    assert losses(["a_b_0_0", "a_b_0_1", "a_b_1_0"], 1, 2) == {"rollout/short_groups": 0, "rollout/lost_prompts": 0}


@pytest.mark.slow
def test_verl_itself_keeps_the_order_of_completion(queue):
    """The reason for the class; when this fails, verl has changed, and the class can go."""
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

    prompts, finished, sampled, _ = sampled_keys(queue, ReplayBuffer)
    assert sampled == finished != prompts


@pytest.mark.parametrize(
    ("name", "device"), [("justrl_deepseek", "cuda"), ("justrl_nemotron", "cuda"), ("demo", "cpu")]
)
def test_every_run_uses_it(name, device):
    from verl.utils.import_utils import load_extern_object

    from recipe.verl_plugins.replay_buffer import ReplayBuffer

    named = compose(name, [], device).trainer.v1.sampler.custom_sampler
    assert issubclass(load_extern_object(named.path, named.name), ReplayBuffer)


def test_order_of_completion_would_sort_the_updates_by_length():
    """FIDELITY.md's figures: 2,048 responses on 32 ranks, lengths log-normal, truncated at 15,360 tokens.

    Balanced over the ranks and cut into four mini-batches as `PPOTrainer._balance_batch` and
    `TrainingWorker.train_mini_batch` do, with responses finished in the order of their lengths.
    """
    import numpy as np
    import torch
    from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions

    drawn = np.minimum(np.random.default_rng(0).lognormal(np.log(6500), 0.7, 2048), 15360).astype(int)

    def mean_lengths(order: np.ndarray) -> list[float]:
        lengths = drawn[order]
        workload = calculate_workload(torch.tensor(lengths)).tolist()
        ranks = get_seqlen_balanced_partitions(workload, 32, equal_size=True)
        return np.mean([lengths[rows].reshape(4, 16) for rows in ranks], axis=(0, 2)).tolist()

    assert mean_lengths(np.argsort(drawn)) == pytest.approx([2900, 5100, 8100, 13600], rel=0.05)
    assert mean_lengths(np.arange(2048)) == pytest.approx([drawn.mean()] * 4, rel=0.05)
