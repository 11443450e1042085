"""Prompts that teach nothing are replaced, and none is used earlier because its responses are short.

On a real TransferQueue, as in tests/test_replay_buffer.py.
"""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from recipe.compose import compose
from tests.test_processes import wait_until
from tests.test_replay_buffer import PROMPTS, RESPONSES, TOKENS, build, end, put, sample

SAMPLER = "trainer.v1.sampler."
FAST = SAMPLER + "sampler_kwargs.poll_interval=0.01"


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
    buffer = build(buffer_class, [FAST])
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
    buffer = build(ReplayBufferAsync, [FAST])
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
