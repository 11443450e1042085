"""The arm `as_released` gives the loss, the entropy and the validation scores of verl 0.4.0, computed here by hand."""

import importlib
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from recipe.compose import compose
from reward import justrl
from reward.released import compute_score
from tests import test_objective
from tests.test_objective import PROMPT_LENGTH, PROMPT_TOKENS, RANK_TOKENS, RANKS

batch = test_objective.batch  # the fixture
TOKEN_BUDGET = 50  # with which no micro-batch of the batch exceeds it, where verl 0.9.1 would make one more
LOSS = "actor_rollout_ref.actor.policy_loss.loss_mode=as_released"


@pytest.fixture(scope="module")
def released():
    """The arm's module; what it replaces of verl is put back for the tests of other files."""
    from verl.trainer.ppo.v1 import trainer_base
    from verl.utils import seqlen_balancing

    replaced = (
        (seqlen_balancing, "calculate_workload"),
        (trainer_base, "calculate_workload"),
        (trainer_base.PPOTrainer, "_compute_advantage"),
    )
    before = [getattr(owner, name) for owner, name in replaced]
    yield importlib.import_module("recipe.verl_plugins.released")
    for (owner, name), value in zip(replaced, before, strict=True):
        setattr(owner, name, value)


@pytest.fixture
def actor(released):
    from verl.utils.config import omega_conf_to_dataclass

    return omega_conf_to_dataclass(compose("justrl_deepseek", [LOSS], "cuda").actor_rollout_ref.actor)


def hand_loss(batch, ranks: int) -> tuple[float, np.ndarray]:
    """Return verl 0.4's loss and gradient, as `test_objective.hand_loss` does the objective's."""
    total, slopes = 0.0, {}
    for rank in range(ranks):
        rows = range(rank, len(batch.lengths), ranks)
        own = [[int(batch.lengths[i]) for i in rows]]
        weights = test_objective.release_weights(own, prompt=PROMPT_TOKENS, budget=TOKEN_BUDGET)[0] / ranks
        for i, weight in zip(rows, weights, strict=True):
            ratios = np.exp(batch.new[i] - batch.old[i])
            surrogates = [test_objective.hand_surrogate(ratio, batch.advantages[i]) for ratio in ratios]
            total -= weight * sum(value for value, _ in surrogates)
            slopes[i] = [-weight * slope for _, slope in surrogates]
    return total, np.concatenate([slopes[i] for i in sorted(slopes)])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_loss_and_gradient_are_those_of_verl_0_4(actor, batch, ranks, monkeypatch):
    monkeypatch.setattr(test_objective, "TOKEN_BUDGET", TOKEN_BUDGET)
    loss, gradient, micro_batches = test_objective.verl_loss(actor, batch, ranks)
    expected_loss, expected_gradient = hand_loss(batch, ranks)
    assert len(micro_batches) > ranks
    assert loss == pytest.approx(expected_loss, rel=1e-10)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-10, atol=1e-16)
    token_mean = test_objective.hand_loss(batch)
    assert loss != pytest.approx(token_mean[0], rel=1e-3)
    assert not np.allclose(gradient, token_mean[1], rtol=0.05)


def test_a_micro_batch_of_masked_responses_adds_nothing(released, actor):
    import torch

    actor.global_batch_info.update(dp_size=2, batch_num_tokens=9, global_batch_size=4)
    ones = torch.ones(1, 1)
    loss, _ = released.policy_loss(
        old_log_prob=-ones, log_prob=-ones, advantages=ones, response_mask=ones == 0, config=actor
    )
    assert loss == 0


def test_ranks_and_micro_batches_are_balanced_by_tokens(released):
    import torch
    from verl.trainer.ppo.v1 import trainer_base
    from verl.utils import seqlen_balancing

    lengths = torch.tensor([5, 15360])
    for module in (trainer_base, seqlen_balancing):
        assert module.calculate_workload(lengths) is lengths


def hand_entropy(entropies: np.ndarray, lengths: np.ndarray, ranks: int, budget: int, prompt: int) -> float:
    """Return what verl 0.4 logged, on its padded tensors.

    Its `compute_log_prob` concatenates the micro-batches of a rank, the trainer the ranks, and `agg_loss` takes the
    mean under the mask of the batch. Entropies of padding are zero.
    """
    from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

    mask = np.arange(entropies.shape[1]) < lengths[:, None]
    by_rank = np.split(np.arange(len(lengths)), ranks)
    totals = [int(lengths[rows].sum()) + prompt * len(rows) for rows in by_rank]
    count = math.ceil(max(totals) / budget)
    logged = []
    for rows in by_rank:
        parts = get_seqlen_balanced_partitions((lengths[rows] + prompt).tolist(), count, equal_size=False)
        logged += [(entropies * mask)[rows][part] for part in parts]
    return (np.concatenate(logged) * mask).sum() / mask.sum()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_entropy_is_that_which_verl_0_4_logged(released, ranks):
    import torch

    rng = np.random.default_rng(0)
    lengths, entropies = rng.integers(1, 50, 32), rng.uniform(0, 3, (32, 50))
    arguments = {"ranks": ranks, "budget": 100}
    nested = [torch.tensor(row[:length]) for row, length in zip(entropies, lengths, strict=True)]
    logged = released.entropy_as_released(nested, (lengths + 3).tolist(), **arguments)
    assert logged == pytest.approx(hand_entropy(entropies, lengths, **arguments, prompt=3), rel=1e-12)
    assert logged < 0.9 * float(torch.cat(nested).mean())


def test_verl_0_4_logged_two_thirds_of_an_even_entropy(released):
    """FIDELITY.md's figure: steps of 2,048 responses on 32 ranks, lengths as in `test_objective`."""
    import torch
    from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

    logged = []
    for step in test_objective.release_lengths():
        partition = get_seqlen_balanced_partitions((step + PROMPT_LENGTH).tolist(), RANKS, equal_size=True)
        lengths = step[np.concatenate(partition)]
        even = [torch.ones(length) for length in lengths]
        logged.append(released.entropy_as_released(even, (lengths + PROMPT_LENGTH).tolist(), RANKS, RANK_TOKENS))
    assert np.mean(logged) == pytest.approx(0.68, abs=0.005)


def graded_by_verl_0_4(response: str, reference: str) -> float:
    """Score as verl 0.4's `utils/reward_score/math_verify.py`, which also held what went wrong for incorrect."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig
    from math_verify.metric import math_metric

    metric = math_metric((LatexExtractionConfig(),), (ExprExtractionConfig(), LatexExtractionConfig()))
    return metric([rf"\boxed{{{reference}}}"], [response])[0]


@pytest.mark.parametrize(
    ("response", "reference", "in_training"),
    [
        (r"so it is $\boxed{34}$.", "34", True),
        (r"so it is $\boxed{35}$.", "34", False),
        (r"so it is $\boxed{34.0}$.", "34", False),
        (r"so it is $\boxed{34}$, " + 30 * "which can be checked. ", "34", False),
        ("Answer: 34", "34", False),
        (r"\boxed{\tfrac12}", "0.5", False),
        (r"\boxed{0.333}, no, \boxed{\frac{1}{3}}", r"\frac{1}{3}", True),
        ("I do not know.", "34", False),
        ("", "34", False),
    ],
)
def test_training_is_scored_by_the_box_and_validation_by_math_verify(response, reference, in_training):
    """Within a thread, as verl calls rewards, where math-verify's own time limits fail."""
    with ThreadPoolExecutor(1) as thread:
        train, test = (
            thread.submit(compute_score, "AIME24", response, reference, {"split": split}, shadow=True).result()
            for split in ("train", "test")
        )
    strict = {"strict": float(in_training)}
    assert train == justrl.compute_score("AIME24", response, reference, shadow=True) | strict
    assert train["score"] == (1 if in_training else -1)
    assert test == train | dict.fromkeys(("score", "acc"), graded_by_verl_0_4(response, reference))


def test_math_verify_ends_at_a_deadline():
    assert compute_score("AIME24", r"\boxed{9^{9^{9^{9^{9}}}}}", "34", {"split": "test"})["score"] == 0
