"""A batch reaches the trainer in the order of its prompts, although its responses finished in another."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from omegaconf import OmegaConf

from common.ray_start import prepare_ray_start
from recipe.compose import compose
from recipe.verl_plugins.preemptions import COUNT
from tests.test_processes import wait_until

PROMPTS, RESPONSES, TOKENS = 6, 8, 2
SAMPLER = "trainer.v1.sampler."
TAG = {"status": "success", "response_len": TOKENS}


@pytest.fixture(scope="module")
def queue():
    """A TransferQueue with one storage unit, on a Ray of its own."""
    import ray
    import transfer_queue

    prepare_ray_start()
    ray.init(address="local", num_cpus=3, include_dashboard=False)
    transfer_queue.init(compose("demo", [], "cpu").transfer_queue)
    yield transfer_queue
    transfer_queue.close()
    ray.shutdown()


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


class Prompts:
    """A data loader of prompts whose outcomes are known; their responses are there at once, the last prompt's first.

    Args:
        outcomes: "+" for a prompt whose responses are all correct, "-" all incorrect, "m" mixed, "x" failed, and "w"
            for one with mixed responses that are there when `release` is called.
    """

    def __init__(self, queue, outcomes: str):
        self.queue, self.outcomes, self.uids = queue, outcomes, []
        self.names = random.Random(2).sample(range(10**6), len(outcomes))

    def submit(self, count: int) -> None:
        new = range(len(self.uids), len(self.uids) + count)
        waiting = [{"is_prompt": True, "status": "running", "global_steps": 1} for _ in new]
        self.uids += [f"prompt{self.names[i]}" for i in new]
        self.queue.kv_batch_put(keys=self.uids[new[0] :], partition_id="train", tags=waiting)
        for i in reversed(new):
            if self.outcomes[i] != "w":
                self.respond(i)

    def respond(self, i: int) -> None:
        outcome = self.outcomes[i]
        if outcome != "x":
            for key in self.responses(i):
                put(self.queue, key, acc=outcome == "+" or (outcome in "mw" and key.endswith("_0_0")))
        end(self.queue, [self.uids[i]], "failure" if outcome == "x" else "finished")

    def release(self) -> None:
        for i, outcome in enumerate(self.outcomes[: len(self.uids)]):
            if outcome == "w":
                self.respond(i)

    def responses(self, *indexes: int) -> list[str]:
        return [f"{self.uids[i]}_{session}_0" for i in indexes for session in range(RESPONSES)]


def filtering(buffer_class, prompts: Prompts, most: int = 0):
    """Build a replay buffer with dynamic sampling, as the trainer does."""
    buffer = build(buffer_class, ["trainer.v1.sampler.sampler_kwargs.poll_interval=0.01"])
    buffer.filter_groups_metric, buffer.refill_fn, buffer.most_thrown_away = "acc", prompts.submit, most
    buffer.train_batch_size, buffer.gen_batch_size = PROMPTS, 1
    return buffer


@pytest.mark.slow
def test_groups_without_a_difference_are_replaced_in_the_order_of_prompts(queue):
    from recipe.verl_plugins.replay_buffer import ReplayBuffer

    prompts = Prompts(queue, "m+m-m+" + "mm-mm+")  # three are missing, and verl generates two for each
    prompts.submit(PROMPTS)
    sampled, metrics = sample(queue, filtering(ReplayBuffer, prompts))
    assert sampled == prompts.responses(0, 2, 4, 6, 7, 9)
    assert (metrics["rollout/filtered_correct"], metrics["rollout/filtered_incorrect"]) == (3, 2)
    assert metrics["rollout/discarded_prompts"] == 1, "the batch was full before the eleventh"
    assert metrics["rollout/generated_prompts"] == 12
    assert metrics["rollout/generated_tokens"] == 12 * RESPONSES * TOKENS
    assert metrics["rollout/short_groups"] == metrics["rollout/lost_prompts"] == 0
    assert not (queue.kv_list("train") or {}).get("train"), "nothing is left for the next step"


@pytest.mark.slow
def test_a_slow_prompt_is_waited_for_though_faster_ones_would_fill_the_batch(queue):
    from recipe.verl_plugins.replay_buffer import ReplayBuffer

    prompts = Prompts(queue, "wmmm+m" + "mm")
    buffer = filtering(ReplayBuffer, prompts)
    prompts.submit(PROMPTS)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(lambda: (wait_until(lambda: len(buffer.seen) == 6 * RESPONSES), prompts.release()))
        sampled, metrics = sample(queue, buffer)
    slow.result()
    assert sampled == prompts.responses(0, 1, 2, 3, 5, 6)
    assert metrics["rollout/discarded_prompts"] == 1


@pytest.mark.slow
def test_a_step_that_finds_nothing_to_learn_from_ends_the_run(queue):
    from recipe.verl_plugins.replay_buffer import ReplayBuffer

    prompts = Prompts(queue, "+" * 100)
    prompts.submit(PROMPTS)
    with pytest.raises(RuntimeError, match="max_num_gen_batches: 12 prompts of one step were thrown away"):
        sample(queue, filtering(ReplayBuffer, prompts, most=2 * PROMPTS - 1))
    queue.kv_clear(partition_id="train", keys=list(queue.kv_list("train")["train"]))


@pytest.mark.slow
def test_a_prompt_without_responses_is_replaced_on_request(queue):
    from recipe.verl_plugins.replay_buffer import ReplayBuffer

    prompts = Prompts(queue, "mx+m-m" + "m")
    buffer = filtering(ReplayBuffer, prompts)
    buffer.filter_groups_metric, buffer.sync_refill_failed_groups = None, True
    prompts.submit(PROMPTS)
    sampled, metrics = sample(queue, buffer)
    assert sampled == prompts.responses(0, 2, 3, 4, 5, 6)
    assert metrics["rollout/lost_prompts"] == 0
    assert "rollout/filtered_correct" not in metrics


@pytest.mark.slow
def test_the_asynchronous_buffer_is_first_in_first_out(queue):
    from recipe.verl_plugins.replay_buffer import ReplayBufferAsync

    prompts = Prompts(queue, "mmwmmm" + "mmmmmm")  # with the second six there, verl would take them and five of these
    buffer = build(ReplayBufferAsync, ["trainer.v1.sampler.sampler_kwargs.poll_interval=0.01"])
    prompts.submit(2 * PROMPTS)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(lambda: (wait_until(lambda: len(buffer.seen) == 11 * RESPONSES), prompts.release()))
        first, _ = sample(queue, buffer)
    slow.result()
    assert first == prompts.responses(*range(6))
    second, metrics = sample(queue, buffer)
    assert second == prompts.responses(*range(6, 12))
    assert metrics["rollout/generated_tokens"] == PROMPTS * RESPONSES * TOKENS


@pytest.mark.parametrize("refill", ["algorithm.filter_groups.enable=true", SAMPLER + "sync_refill_failed_groups=true"])
def test_the_trainer_gives_it_what_verl_gives_its_own(refill):
    from recipe.verl_plugins.trainer import SyncTrainer

    def built(*overrides):
        trainer = object.__new__(SyncTrainer)
        options = [refill, "algorithm.filter_groups.metric=acc", "algorithm.filter_groups.max_num_gen_batches=3"]
        trainer.config, trainer.trainer_mode = compose("demo", [*options, *overrides], "cpu"), "sync"
        return trainer._build_replay_buffer()

    ours, verls = built(), built(SAMPLER + "custom_sampler.path=null")
    different = {name for name in vars(verls) if getattr(ours, name) != getattr(verls, name)}
    assert different == {"poll_interval", "refill_fn"}, "bound to two trainers"
    assert ours.most_thrown_away == 3 * 32


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
