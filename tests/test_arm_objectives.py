"""What an arm makes verl compute is what its source says, worked out here by hand, as in tests/test_objective.py.

Advantages and correction weights come from the trainer's own step, the loss and its gradient from the actor's, over
ranks and micro-batches, all in float64. Each comparison fails for the baseline's config.
"""

import copy
import functools
import math
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from recipe.compose import compose
from tests.test_objective import GROUP, REWARDS, hand_advantages, hand_surrogate, make_batch, verl_loss

BASELINE, BUDGET = "baseline", 15360
LOSSES = ["symmetric_clip", "kl_loss", "entropy_bonus", "gspo", "cispo", "clip_cov", "tis", "icepop"]
ADVANTAGES = ["dr_grpo", "rloo", "reinforce_pp", "grpo_passk"]  # dr_grpo changes the loss as well
ARMS = [*LOSSES, *ADVANTAGES]


@functools.cache
def config_of(arm):
    return compose("justrl_deepseek", [] if arm == BASELINE else [f"+arms={arm}"], "cuda")


def arm_batch():
    """Return the batch of tests/test_objective.py with an initial model's and a rollout's log-probabilities.

    One response is near its old probability as a whole, one token far from its initial one, and ratios of trainer and
    rollout lie on all sides of IcePop's and TIS's thresholds.
    """
    rng, batch = np.random.default_rng(1), make_batch()
    batch.new[5] = batch.old[5] + rng.normal(0, 1e-4, batch.lengths[5])
    batch.ref_log_prob = [new + rng.normal(0, 0.5, len(new)) for new in batch.new]
    batch.ref_log_prob[0][0] = batch.new[0][0] + 3
    batch.ratios = [np.exp(rng.normal(0, 0.9, n)) for n in batch.lengths]
    batch.rollout = [old - np.log(ratio) for old, ratio in zip(batch.old, batch.ratios, strict=True)]
    return batch


def nested(arrays):
    return torch.nested.as_nested_tensor([torch.tensor(array) for array in arrays], layout=torch.jagged)


def through_trainer(config, batch, rollout_log_probs=True):
    """Return the batch with the advantages and correction weights that the trainer's step gives it."""
    from tensordict import TensorDict
    from verl.trainer.ppo.v1 import trainer_base

    fields = {
        "uid": torch.arange(REWARDS.size) // GROUP,
        "response_mask": nested([np.ones(n, dtype=int) for n in batch.lengths]),
        "rm_scores": nested([np.eye(n)[-1] * r for n, r in zip(batch.lengths, REWARDS.ravel(), strict=True)]),
        "old_log_probs": nested(batch.old),
    } | ({"rollout_log_probs": nested(batch.rollout)} if rollout_log_probs else {})
    written = {}
    queue = SimpleNamespace(
        kv_batch_get=lambda **_: TensorDict(fields, batch_size=REWARDS.size),
        kv_batch_put=lambda fields, **_: written.update(fields.items()),
    )
    keys = [f"{row // GROUP}_{row % GROUP}_0" for row in range(REWARDS.size)]
    meta = mock.MagicMock(keys=keys, __len__=lambda self: REWARDS.size)
    with mock.patch.object(trainer_base, "tq", queue):
        trainer_base.PPOTrainer._compute_advantage(SimpleNamespace(config=config), meta, {})
    seen = copy.copy(batch)
    rows = [row.numpy() for row in written["advantages"].unbind()]
    assert all((row == row[0]).all() for row in rows)  # of an outcome, the same for each token
    seen.advantages = np.array([row[0] for row in rows])
    if "rollout_is_weights" in written:
        seen.rollout_is_weights = [row.numpy() for row in written["rollout_is_weights"].unbind()]
    return seen


def advantages(arm, lengths):
    """Return the advantage of each response by hand."""
    centred = REWARDS - REWARDS.mean(axis=1, keepdims=True)
    if arm == "dr_grpo":
        return centred.ravel()
    if arm == "rloo":
        others = (REWARDS.sum(axis=1, keepdims=True) - REWARDS) / (GROUP - 1)
        return (REWARDS - others).ravel()
    if arm == "reinforce_pp":
        tokens = np.repeat(centred.ravel(), lengths)
        bessel = np.float32(tokens.size / (tokens.size - 1))  # verl takes this factor in fp32
        return (centred.ravel() - tokens.mean()) / np.sqrt(tokens.var() * bessel + 1e-8)
    if arm == "grpo_passk":
        # Of the best reward, what is lost without the response: with -1 and 1 only where it is the only correct one.
        best = [[row.max() - np.delete(row, i).max() for i in range(GROUP)] for row in REWARDS]
        return (np.array(best) / (REWARDS.std(axis=1, ddof=1, keepdims=True) + 1e-6)).ravel()
    return hand_advantages(REWARDS).ravel()


def test_pass_at_k_goes_on_with_short_groups_and_padding():
    """verl raises at a group of one, as a failed response or a single row of padding leaves it."""
    import torch
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    from recipe.verl_plugins import trainer  # noqa: F401, a run's driver imports it

    rewards = torch.tensor([[1.0], [-1.0], [-1.0], [1.0], [0.0]])
    index = np.array(["a", "a", "a", "b", "pad"], dtype=object)
    found, _ = get_adv_estimator_fn("grpo_passk")(
        token_level_rewards=rewards, response_mask=torch.ones(5, 1), index=index, config={}
    )
    assert found[:, 0].tolist() == pytest.approx([2 / math.sqrt(4 / 3), 0, 0, 0, 0], rel=1e-5)


def surrogate(batch, i, **clip):
    """Return values and slopes of the tokens of a response."""
    ratios = np.exp(batch.new[i] - batch.old[i])
    return np.array([hand_surrogate(ratio, batch.advantages[i], **clip) for ratio in ratios]).T


def kl_loss(batch, i):
    log_ratio = batch.ref_log_prob[i] - batch.new[i]
    estimate, slope = np.exp(log_ratio) - log_ratio - 1, 1 - np.exp(log_ratio)
    held = estimate > 10
    return surrogate(batch, i) - 0.04 * np.array([np.where(held, 10, estimate), np.where(held, 0, slope)])


def entropy_bonus(batch, i):
    return surrogate(batch, i) + 0.001 * np.array([-batch.new[i], -np.ones(batch.lengths[i])])


def gspo(batch, i):
    """Each token has the ratio of its response, whose mean over tokens is then the paper's sequence objective."""
    ratio = math.exp((batch.new[i] - batch.old[i]).mean())
    one = hand_surrogate(ratio, batch.advantages[i], low=1 - 3e-4, high=1 + 4e-4, floor=math.inf)
    return np.repeat(np.array(one)[:, None], batch.lengths[i], axis=1)


def cispo(batch, i):
    weight = np.minimum(np.exp(batch.new[i] - batch.old[i]), 5) * batch.advantages[i]
    return np.array([weight * batch.new[i], weight])


def corrected(batch, i, weights):
    return surrogate(batch, i) * weights(batch.ratios[i])


def clip_cov(batch, parts):
    """Drop one token of each micro-batch, drawn as verl draws it, from those with a covariance between 1 and 5."""
    tokens = [surrogate(batch, i, low=0, high=2, floor=math.inf) for i in range(len(batch.lengths))]
    for rows in parts:
        mean_advantage = np.average(batch.advantages[rows], weights=batch.lengths[rows])
        mean_log_prob = np.concatenate([batch.new[i] for i in rows]).mean()
        found = []
        for i in rows:
            covariance = (batch.advantages[i] - mean_advantage) * (batch.new[i] - mean_log_prob)
            clipped = (batch.advantages[i] > 0) & (batch.new[i] - batch.old[i] > math.log(2))
            found += [(i, t) for t in np.flatnonzero((covariance > 1) & (covariance < 5) & ~clipped)]
        if found:
            i, t = found[torch.randperm(len(found))[0]]
            tokens[i][:, t] = 0
    return tokens


TOKENS = {
    "symmetric_clip": functools.partial(surrogate, high=1.2),
    "kl_loss": kl_loss,
    "entropy_bonus": entropy_bonus,
    "gspo": gspo,
    "cispo": cispo,
    "tis": functools.partial(corrected, weights=lambda ratios: np.minimum(ratios, 2)),
    "icepop": functools.partial(corrected, weights=lambda ratios: ratios * ((ratios >= 0.5) & (ratios <= 5))),
}


def by_hand(arm, batch, parts):
    """Return loss and gradient as `verl_loss` does."""
    batch = copy.copy(batch)
    batch.advantages, responses = advantages(arm, batch.lengths), len(batch.lengths)
    rows = clip_cov(batch, parts) if arm == "clip_cov" else None
    rows = rows or [TOKENS.get(arm, surrogate)(batch, i) for i in range(responses)]
    weights = [1 / sum(batch.lengths)] * responses
    if arm == "dr_grpo":
        weights = [1 / (responses * BUDGET)] * responses
    if arm == "gspo":
        weights = [1 / (responses * n) for n in batch.lengths]
    loss, gradient = np.concatenate([weight * row for weight, row in zip(weights, rows, strict=True)], axis=1)
    return -loss.sum(), -gradient


def through_verl(config, batch, ranks=1, micro_batches=True):
    from verl.utils.config import omega_conf_to_dataclass

    torch.manual_seed(0)  # of Clip-Cov's draw
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    return verl_loss(actor, through_trainer(config, batch), ranks, micro_batches)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("arm", [BASELINE, *ARMS])
def test_loss_and_gradient_are_the_arms(arm, ranks):
    loss, gradient, parts = through_verl(config_of(arm), arm_batch(), ranks)
    assert len(parts) > ranks
    torch.manual_seed(0)
    expected_loss, expected_gradient = by_hand(arm, arm_batch(), parts)
    assert loss == pytest.approx(expected_loss, rel=1e-10)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("arm", ARMS)
def test_the_baseline_has_another_loss_and_gradient(arm):
    """The comparison above can fail."""
    loss, gradient, parts = through_verl(config_of(BASELINE), arm_batch())
    torch.manual_seed(0)
    other_loss, other_gradient = by_hand(arm, arm_batch(), parts)
    assert loss != pytest.approx(other_loss, rel=1e-4)
    assert not np.allclose(gradient, other_gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("arm", ADVANTAGES)
def test_advantages_are_the_arms_and_not_the_baselines(arm):
    batch = arm_batch()
    found = through_trainer(config_of(arm), batch).advantages
    np.testing.assert_allclose(found, advantages(arm, batch.lengths), rtol=1e-10)
    assert not np.allclose(found, through_trainer(config_of(BASELINE), batch).advantages, rtol=1e-3)


@pytest.mark.parametrize(("arm", "highest", "lowest"), [("tis", 2, None), ("icepop", 5, 0.5)])
def test_weights_are_ratios_of_trainer_and_rollout(arm, highest, lowest):
    batch = arm_batch()
    found = np.concatenate(through_trainer(config_of(arm), batch).rollout_is_weights)
    ratios = np.concatenate(batch.ratios)
    inside = (ratios <= highest) & (ratios >= (lowest or 0))
    assert all(side.any() for side in (inside, ratios > highest, ratios < 0.5))
    np.testing.assert_allclose(found[inside], ratios[inside], rtol=1e-10)
    assert set(found[ratios > highest]) == {0 if lowest else 2}
    assert not lowest or set(found[ratios < lowest]) == {0}
    assert not hasattr(through_trainer(config_of(BASELINE), batch), "rollout_is_weights")


def test_without_the_rollouts_log_probs_verl_leaves_the_correction_out_silently():
    """Hence `calculate_log_probs` beside these arms where it is off: `justrl.arms` of the demo."""
    assert not hasattr(through_trainer(config_of("tis"), arm_batch(), rollout_log_probs=False), "rollout_is_weights")
    assert config_of("tis").actor_rollout_ref.rollout.calculate_log_probs
    for arm in ("tis", "icepop"):
        assert compose("demo", [f"+arms={arm}"], "cpu").actor_rollout_ref.rollout.calculate_log_probs


def test_without_a_constant_dr_grpo_would_divide_by_the_padding():
    """With one, the loss does not depend on micro-batches; `test_loss_and_gradient_are_the_arms` has the gradient."""
    null = compose("justrl_deepseek", ["+arms=dr_grpo", "actor_rollout_ref.actor.loss_scale_factor=null"], "cuda")
    losses = {
        whole: [through_verl(config, arm_batch(), micro_batches=whole)[0] for config in (config_of("dr_grpo"), null)]
        for whole in (True, False)
    }
    assert losses[True][0] == pytest.approx(losses[False][0], rel=1e-10)
    assert losses[True][1] != pytest.approx(losses[False][1], rel=1e-2)
