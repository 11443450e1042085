"""The loss that a composed config makes verl minimise is JustRL's objective, computed here by hand.

Objective (paper, section 3 and table 2; PPO's clip-higher from DAPO, the dual clip from arXiv 1912.09729): for a
token with ratio r and its response's advantage A, the surrogate is min(r A, clip(r, 0.8, 1.28) A), for A < 0 not
below 10 A; the loss is minus its mean over all response tokens of a mini-batch. A is the reward minus the group's
mean, over the group's standard deviation plus 1e-6. verl's side is called as its trainer and its actor call it.
"""

import itertools
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from recipe.compose import compose

LOW, HIGH, FLOOR = 0.8, 1.28, 10.0
GROUP, PROMPT_TOKENS, TOKEN_BUDGET = 8, 3, 40
REWARDS = np.array([[1, -1, -1, -1, -1, -1, -1, -1], [1, 1, 1, 1, -1, -1, 1, -1], [-1] * 8, [1, 1, 1, 1, 1, 1, 1, -1]])
# (ratio, whether the advantage is negative): every branch of the objective, and both sides of each threshold.
BRANCHES = list(itertools.product((0.5, 0.79, 0.81, 1.0, 1.27, 1.29, 2.0, 9.9, 10.1, 50.0), (True, False)))

RANKS, RANK_TOKENS, PROMPT_LENGTH, LONGEST = 32, 32768, 150, 15360  # of the release's runs; 150 is a usual prompt


@pytest.fixture(scope="module")
def config():
    return compose("justrl_deepseek", [], "cuda")


@pytest.fixture(scope="module")
def actor(config):
    from verl.utils.config import omega_conf_to_dataclass

    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


@pytest.fixture(scope="module")
def batch():
    return make_batch()


def make_batch():
    """Return four groups of eight responses of 1 to 20 tokens, as lists of arrays; ratios cover every branch."""
    rng = np.random.default_rng(0)
    advantages = hand_advantages(REWARDS).ravel()
    lengths = rng.integers(1, 21, REWARDS.size)
    lengths[0] = lengths[1] = 20  # a correct and an incorrect response long enough for every branch
    old = [rng.uniform(-3, -0.1, n) for n in lengths]
    ratios = [np.exp(rng.normal(0, 0.3, n)) for n in lengths]
    for i, negative in ((0, False), (1, True)):
        planted = [ratio for ratio, wants_negative in BRANCHES if wants_negative == negative]
        ratios[i][: len(planted)] = planted
    new = [o + np.log(r) for o, r in zip(old, ratios, strict=True)]
    return SimpleNamespace(advantages=advantages, lengths=lengths, old=old, new=new)


def hand_advantages(rewards: np.ndarray) -> np.ndarray:
    """Return the advantage of each reward, (groups, responses); the deviation is the sample's, over n - 1."""
    mean = rewards.mean(axis=1, keepdims=True)
    deviation = np.sqrt(((rewards - mean) ** 2).sum(axis=1, keepdims=True) / (rewards.shape[1] - 1))
    return (rewards - mean) / (deviation + 1e-6)


def hand_surrogate(ratio: float, advantage: float, low=LOW, high=HIGH, floor=FLOOR) -> tuple[float, float]:
    """Return one token's surrogate and its derivative with respect to the token's log-probability."""
    unclipped, clipped = ratio * advantage, min(max(ratio, low), high) * advantage
    value, slope = (unclipped, unclipped) if unclipped <= clipped else (clipped, 0.0)
    if advantage < 0 and value < floor * advantage:
        return floor * advantage, 0.0
    return value, slope


def hand_loss(batch) -> tuple[float, np.ndarray]:
    """Return the loss and its gradient with respect to the log-probability of each response token, flat."""
    tokens = [
        hand_surrogate(math.exp(new - old), advantage)
        for advantage, news, olds in zip(batch.advantages, batch.new, batch.old, strict=True)
        for new, old in zip(news, olds, strict=True)
    ]
    values, slopes = np.array(tokens).T
    return -values.mean(), -slopes / len(tokens)


def verl_data(batch, rows=None):
    """Return rows of the batch as the actor gets them: nested tensors in a TensorDict, and the log-probs' leaf.

    Of what only some arms have, the batch may hold `ref_log_prob`, `rollout_is_weights` and a teacher's `teacher`.
    """
    import torch
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu

    rows = range(len(batch.lengths)) if rows is None else rows
    leaf = {i: torch.tensor(batch.new[i], requires_grad=True) for i in rows}

    def of_rows(arrays):
        return nested(lambda i: torch.tensor(arrays[i]))

    def nested(of):
        return torch.nested.as_nested_tensor([of(i) for i in rows], layout=torch.jagged)

    fields = {
        "row": torch.tensor(list(rows)),
        "prompts": nested(lambda i: torch.ones(PROMPT_TOKENS, dtype=torch.int64)),
        "responses": nested(lambda i: torch.ones(batch.lengths[i], dtype=torch.int64)),
        "input_ids": nested(lambda i: torch.ones(PROMPT_TOKENS + batch.lengths[i], dtype=torch.int64)),
        "loss_mask": nested(lambda i: torch.ones(batch.lengths[i], dtype=torch.int64)),
        "response_mask": nested(lambda i: torch.ones(batch.lengths[i], dtype=torch.int64)),
        "old_log_probs": of_rows(batch.old),
        "advantages": nested(lambda i: torch.full((batch.lengths[i],), batch.advantages[i], dtype=torch.float64)),
    }
    for name in {"ref_log_prob", "rollout_is_weights"} & vars(batch).keys():
        fields[name] = of_rows(getattr(batch, name))
    if hasattr(batch, "teacher"):  # as its server returns them: at each position of the next token, 0 at the end
        rows_of_tokens = {i: np.pad(batch.teacher[i], (PROMPT_TOKENS - 1, 1)) for i in rows}
        fields["teacher_logprobs"] = nested(lambda i: torch.tensor(rows_of_tokens[i])[:, None])
    data = TensorDict(fields, batch_size=len(leaf))
    tu.assign_non_tensor(data, use_dynamic_bsz=True, max_token_len_per_gpu=TOKEN_BUDGET, global_batch_size=REWARDS.size)
    return data, leaf


def verl_loss(
    actor, batch, ranks: int = 1, micro_batches: bool = True, loss_function=None
) -> tuple[float, np.ndarray, list[list[int]]]:
    """Return loss, gradient as in `hand_loss`, and the rows of each micro-batch, as FSDPEngine computes them.

    `verl.workers.engine.fsdp.FSDPEngine.forward_backward_batch` does the same: the tokens of the whole mini-batch
    are counted over all ranks, each rank's rows are split by `prepare_micro_batches`, gradients of the micro-batches
    add up, and FSDP averages those of the ranks. In place of an entropy, which has the same gradient's path, the model
    gives minus the log-probability.
    """
    import torch
    from torch.nn.functional import pad
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine.utils import prepare_micro_batches
    from verl.workers.utils.losses import ppo_loss

    loss_function = loss_function or partial(ppo_loss, config=actor)
    total, gradients, parts = 0.0, {}, []
    for rank in range(ranks):
        data, leaf = verl_data(batch, list(range(rank, len(batch.lengths), ranks)))
        tu.assign_non_tensor(data, batch_num_tokens=int(batch.lengths.sum()), dp_size=ranks, sp_size=1)
        for micro in prepare_micro_batches(data)[0] if micro_batches else [data]:
            # The model's output at a position is the log-probability of the token after it.
            rows = [pad(leaf[i], (PROMPT_TOKENS - 1, 1)) for i in micro["row"].tolist()]
            output = {"log_probs": torch.nested.as_nested_tensor(rows, layout=torch.jagged)}
            if actor.entropy_coeff:
                output["entropy"] = -output["log_probs"]
            loss, _ = loss_function(model_output=output, data=micro)
            loss.backward()
            total += loss.item() / ranks
            parts.append(micro["row"].tolist())
        gradients |= {i: tensor.grad.numpy() / ranks for i, tensor in leaf.items()}
    return total, np.concatenate([gradients[i] for i in sorted(gradients)]), parts


def test_advantages_are_normalised_by_group(config):
    import torch
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    scores = torch.zeros(REWARDS.size, 4)
    scores[:, 1] = torch.tensor(REWARDS.ravel(), dtype=torch.float32)  # a response of two tokens, rewarded at its end
    mask = torch.tensor([1, 1, 0, 0]).repeat(REWARDS.size, 1)
    shuffled = np.random.default_rng(1).permutation(REWARDS.size)  # a group's responses need not be neighbours
    advantages, _ = get_adv_estimator_fn(config.algorithm.adv_estimator)(
        token_level_rewards=scores[shuffled],
        response_mask=mask,
        index=shuffled // GROUP,
        norm_adv_by_std_in_grpo=config.algorithm.norm_adv_by_std_in_grpo,
    )
    expected = hand_advantages(REWARDS).ravel()[shuffled, None] * mask.numpy()
    np.testing.assert_allclose(advantages, expected, rtol=1e-5)
    assert not advantages[shuffled // GROUP == 2].any()  # all incorrect: nothing to learn from
    assert advantages.abs().max() == pytest.approx(7 / math.sqrt(8), rel=1e-5)  # one correct of eight


def test_every_branch_occurs(batch):
    cases = {
        ("negative" if a < 0 else "positive", slope != 0, value == FLOOR * a)
        for a, new, old in zip(batch.advantages, batch.new, batch.old, strict=True)
        if a
        for value, slope in (hand_surrogate(math.exp(n - o), a) for n, o in zip(new, old, strict=True))
    }
    assert cases == {
        ("positive", True, False),  # below 1.28
        ("positive", False, False),  # clipped at 1.28
        ("negative", True, False),  # between 0.8 and 10
        ("negative", False, False),  # clipped at 0.8
        ("negative", False, True),  # held at 10
    }


def test_hand_gradient_is_the_slope_of_the_hand_loss(batch):
    gradient = hand_loss(batch)[1]
    step, position = 1e-6, 0
    for row in (0, 1):
        for token in range(batch.lengths[row]):
            sides = []
            for sign in (1, -1):
                batch.new[row][token] += sign * step
                sides.append(hand_loss(batch)[0])
                batch.new[row][token] -= sign * step
            assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(gradient[position], abs=1e-8)
            position += 1


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, False), (1, True), (2, True), (4, True)])
def test_loss_and_gradient_are_the_objective(actor, batch, ranks, micro_batches):
    """However the mini-batch is spread over ranks and micro-batches: the mean is over all its tokens."""
    loss, gradient, parts = verl_loss(actor, batch, ranks, micro_batches)
    expected_loss, expected_gradient = hand_loss(batch)
    assert len(parts) > ranks or not micro_batches
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize(
    "override",
    [
        "actor_rollout_ref.actor.clip_ratio_high=0.2",
        "actor_rollout_ref.actor.clip_ratio_low=0.3",
        "actor_rollout_ref.actor.clip_ratio_c=3.0",
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
        "actor_rollout_ref.actor.policy_loss.loss_mode=gspo",
    ],
)
def test_another_config_is_another_objective(batch, override):
    """The comparison above can fail."""
    from verl.utils.config import omega_conf_to_dataclass

    other = omega_conf_to_dataclass(compose("justrl_deepseek", [override], "cuda").actor_rollout_ref.actor)
    assert verl_loss(other, batch)[0] != pytest.approx(hand_loss(batch)[0], rel=1e-4)


def release_weights(lengths: list[list[int]], prompt=PROMPT_LENGTH, budget=RANK_TOKENS) -> list[np.ndarray]:
    """Return the weight of a token of each response, a list per rank, in the loss of verl 0.4.

    `DataParallelPPOActor.update_policy` of 0.4 takes the token mean of each micro-batch, weighs it by the micro-batch's
    fraction of the rank's responses, and FSDP averages the ranks. `rearrange_micro_batches` balances the tokens of the
    micro-batches, whose number is the largest that any rank needs; its partition is still verl's.
    """
    from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

    needed = max(min(len(rank), math.ceil(sum(n + prompt for n in rank) / budget)) for rank in lengths)
    weights = []
    for rank in lengths:
        weight = np.zeros(len(rank))
        for rows in get_seqlen_balanced_partitions([n + prompt for n in rank], needed, equal_size=False):
            weight[rows] = len(rows) / len(rank) / sum(rank[i] for i in rows) / len(lengths)
        weights.append(weight)
    return weights


def test_release_weighs_the_tokens_of_a_micro_batch_by_its_responses():
    """The worked example of FIDELITY.md: one rank, eight responses truncated at 15,360 tokens and eight of 3,000."""
    lengths = [LONGEST] * 8 + [3000] * 8
    relative = release_weights([lengths])[0] * sum(lengths)
    assert np.dot(relative, lengths) == pytest.approx(sum(lengths))
    assert (relative.min(), relative.max()) == (pytest.approx(0.598, abs=1e-3), pytest.approx(1.678, abs=1e-3))
    assert release_weights([[5000] * 12])[0] * 60000 == pytest.approx(1)  # equal lengths: no difference


def release_lengths() -> np.ndarray:
    """Return lengths like those of a run's first steps, (steps, responses)."""
    return np.minimum(np.random.default_rng(0).lognormal(math.log(6500), 0.7, (10, 2048)), LONGEST).astype(int)


def test_release_weighs_short_responses_a_little_more():
    """FIDELITY.md's figures: steps of 2,048 responses on 32 ranks, lengths log-normal, truncated at 15,360 tokens."""
    from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

    released, ours = np.zeros(4), np.zeros(4)
    for step in release_lengths():
        quarters = np.quantile(step, (0.25, 0.5, 0.75))
        ranks = [step[rows] for rows in get_seqlen_balanced_partitions(step.tolist(), RANKS, equal_size=True)]
        for update in range(4):
            lengths = [rank.reshape(4, -1)[update].tolist() for rank in ranks]
            flat = np.concatenate(lengths)
            for total, weight in ((released, np.concatenate(release_weights(lengths))), (ours, 1 / flat.sum())):
                total += np.bincount(np.searchsorted(quarters, flat), weight * flat, minlength=4)
    assert released / ours == pytest.approx([1.095, 1.054, 1.040, 0.936], abs=0.01)
