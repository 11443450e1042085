"""A batch reaches the trainer in the order of its prompts, although its responses finished in another."""

import random

import pytest
from omegaconf import OmegaConf

from common.ray_start import prepare_ray_start
from recipe.compose import compose

PROMPTS, RESPONSES = 6, 8


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


def sampled_keys(queue, buffer_class) -> tuple[list[str], list[str], list[str], dict]:
    """Return keys in the order of the prompts, of completion, and as `buffer_class` samples them; and its metrics."""
    import torch
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    uids = [f"prompt{i}" for i in random.Random(0).sample(range(100), PROMPTS)]
    waiting = [{"is_prompt": True, "status": "pending", "global_steps": 1} for _ in uids]
    queue.kv_batch_put(keys=uids, partition_id="train", tags=waiting)
    keys = [f"{uid}_{session}_0" for uid in uids for session in range(RESPONSES)]
    finished = random.Random(1).sample(keys, len(keys))
    for key in finished:
        info = {"score": float(key.endswith("_0_0")), "pred": "" if key.endswith("_1_0") else "7"}
        fields = {"responses": torch.ones(2), "extra_fields": {"reward_extra_info": info}}
        response = list_of_dict_to_tensordict([fields])
        queue.kv_batch_put(keys=[key], partition_id="train", fields=response, tags=[{"status": "success"}])
    for uid in uids:
        queue.kv_put(key=uid, partition_id="train", tag={"status": "finished"})
    sampler = compose("demo", [], "cpu").trainer.v1.sampler
    buffer = buffer_class(
        trainer_mode="sync",
        trainer_config=OmegaConf.create(),
        max_off_policy_threshold=sampler.max_off_policy_threshold,
        max_off_policy_strategy=sampler.max_off_policy_strategy,
        sampler_kwargs=sampler.sampler_kwargs,
    )
    batch, metrics = buffer.sample(global_steps=1, partition_id="train", batch_size=PROMPTS)
    queue.kv_clear(partition_id="train", keys=batch.keys)
    assert all(tag["status"] == "success" for tag in batch.tags)
    return keys, finished, batch.keys, metrics


@pytest.mark.slow
def test_batch_is_in_the_order_of_its_prompts(queue):
    from recipe.verl_plugins.replay_buffer import ReplayBuffer

    prompts, finished, sampled, metrics = sampled_keys(queue, ReplayBuffer)
    assert sampled == prompts != finished
    assert metrics == {"reward/score": 1 / RESPONSES, "reward/pred_empty": 1 / RESPONSES}


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
