"""What arms change beside the objective: the entropy's gradient and metric, updates, learning rate and precision."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from recipe.compose import compose
from recipe.verl_plugins.log_probs import BLOCK, entropy
from tests.test_arm_objectives import BASELINE, BUDGET, config_of
from tests.test_attention import with_gradients
from tests.test_cpu_platform import python

STEPS, RATE = 4380, 1e-6


def test_the_entropy_metric_is_a_mean_over_tokens_whatever_the_loss_is():
    from verl.trainer.ppo.v1 import trainer_base

    from recipe.verl_plugins import trainer

    values, mask = torch.arange(6.0).view(2, 3), torch.tensor([[1, 1, 1], [1, 0, 0]])
    aggregation = {"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": BUDGET}
    assert trainer_base.agg_loss is trainer.mean_over_tokens
    assert trainer.mean_over_tokens(loss_mat=values, loss_mask=mask, **aggregation) == 1.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_entropys_gradient_is_taken_in_blocks(dtype):
    logits = 5 * torch.randn(150, 33, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with mock.patch.dict(BLOCK, cpu=33 * 64):
        got = with_gradients(entropy, [logits.to(dtype)])
    exact = with_gradients(
        lambda leaf: torch.distributions.Categorical(logits=leaf).entropy(), [logits.to(dtype).double()]
    )
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(got[0].double(), exact[0], rtol=0, atol=min(close, 1e-5))
    torch.testing.assert_close(got[1].double(), exact[1], rtol=close, atol=min(close, 1e-5))
    leaf = logits.to(dtype, copy=True).requires_grad_()
    entropy(leaf).sum().backward()
    assert torch.equal(leaf.detach(), logits.to(dtype)), "the logits are read again, by the log-probabilities"


def test_verl_takes_that_entropy():
    from verl.utils import torch_functional

    from recipe.verl_plugins import attention  # noqa: F401 - puts it in place

    assert torch_functional.entropy_from_logits_with_chunking is entropy
    assert config_of("entropy_bonus").actor_rollout_ref.actor.fsdp_config.entropy_from_logits_with_chunking


def updates(config):
    """Return the responses of each update of a step, as trainer and actor cut the batch."""
    from tensordict import TensorDict
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.utils import tensordict_utils as tu

    found = []

    def update_actor(batch):
        rows = torch.arange(config.data.train_batch_size * config.actor_rollout_ref.rollout.n)
        data, info = TensorDict({"row": rows}, batch_size=len(rows)), batch.extra_info
        found.extend(len(mini) for mini in tu.make_iterator(data, info["mini_batch_size"], info["epochs"]))
        assert info["global_batch_size"] == info["mini_batch_size"]
        return {"metrics": {"mfu": [0.0]}}

    workers = SimpleNamespace(update_actor=update_actor)
    trainer = SimpleNamespace(config=config, actor_rollout_wg=workers)
    PPOTrainer._update_actor(trainer, SimpleNamespace(extra_info={}), {})
    return found


def test_updates_of_a_step():
    assert updates(config_of(BASELINE)) == updates(config_of("larger_group")) == [512] * 4
    assert updates(config_of("on_policy")) == [2048]
    assert config_of("larger_group").actor_rollout_ref.rollout.n == 16
    assert updates(compose("demo", ["+arms=larger_group"], "cpu")) == [64] * 4
    assert updates(compose("demo", ["+arms=on_policy"], "cpu")) == [256]


def rates(config):
    """Return the learning rate of each step, of the schedule that the actor builds."""
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    optim = omega_conf_to_dataclass(config.actor_rollout_ref.actor).optim
    optim.total_training_steps = config.trainer.total_training_steps  # as PPOTrainer._init_dataloader does
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=optim.lr)
    engine = SimpleNamespace(optimizer_config=optim, rank=1)
    engine.lr_scheduler = FSDPEngine._build_lr_scheduler(engine, optimizer)
    found = []
    for _ in range(optim.total_training_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        FSDPEngine.lr_scheduler_step(engine)
    return found


def test_the_rate_falls_along_half_a_cosine_to_a_tenth():
    progress = (np.arange(STEPS) - 10) / (STEPS - 10)
    expected = RATE * np.where(progress < 0, np.arange(STEPS) / 10, 0.55 + 0.45 * np.cos(np.pi * progress))
    found = rates(config_of("lr_decay"))
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert found[10] == RATE
    assert found[-1] == pytest.approx(RATE / 10, rel=1e-4)
    assert found[:11] == rates(config_of(BASELINE))[:11]
    assert set(rates(config_of(BASELINE))[10:]) == {RATE}


ENGINE = """
import os, torch
from types import SimpleNamespace
from verl.utils import distributed
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead as Engine
from recipe.compose import compose
from tests.test_attention import tiny_model
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29534", "RANK": "0", "WORLD_SIZE": "1"}
distributed.initialize_global_process_group_ray()

def engine(*overrides, part="actor"):
    config = compose("demo", list(overrides), "cpu").actor_rollout_ref
    made = object.__new__(Engine)
    made.engine_config = omega_conf_to_dataclass(config[part].fsdp_config)
    object.__setattr__(made.engine_config, "strategy", config[part].strategy)  # as FSDPActorConfig does
    made.optimizer_config = omega_conf_to_dataclass(config.actor.optim)
    made.model_config = SimpleNamespace(lora_rank=0, enable_activation_offload=False)
    made.device_mesh = torch.distributed.init_device_mesh("cpu", (1,))
    made._is_offload_param, made._qat_enabled = False, False
    made.module = made._build_fsdp_module(tiny_model("eager", torch.float32))
    made.optimizer = made._build_optimizer(made.module)
    return made

def logits_of(made):
    with torch.autocast("cpu", made._autocast_dtype):
        return made.module(input_ids=torch.arange(5)[None], use_cache=False).logits
"""
FP16 = """
def update(made, factor):
    logits = logits_of(made)
    loss = factor * logits.float().logsumexp(-1).mean()
    made.optimizer.zero_grad()
    (made.scaler.scale(loss) if made.scaler else loss).backward()
    weight = made.module.lm_head.weight
    before = weight.full_tensor().clone()
    norm = made.optimizer_step()
    return logits.dtype, weight.grad.dtype, norm, not torch.equal(weight.full_tensor(), before)

baseline, ignored, arm = engine(), engine("actor_rollout_ref.actor.fsdp_config.dtype=float16"), engine("+arms=fp16")
for made in (baseline, ignored):
    assert made.scaler is None and update(made, 1)[0] == torch.bfloat16
assert arm.scaler.is_enabled() and arm.scaler.get_scale() == 2**16
computed, reduced, norm, stepped = update(arm, 1)
assert (computed, reduced, stepped) == (torch.float16, torch.float32, True), (computed, reduced, stepped)
assert abs(norm - update(engine(), 1)[2]) < 0.02 * norm, norm
assert arm.scaler.get_scale() == 2**16
assert not update(arm, 1e4)[3], "gradients overflowed, and the update was not skipped"
assert arm.scaler.get_scale() == 2**15
"""


def test_fp16_computes_in_float16_and_scales_the_loss():
    """And `fsdp_config.dtype` does neither. An update that overflows is skipped, and halves the scale."""
    done = python(ENGINE + FP16)
    assert done.returncode == 0, done.stderr[-2000:]
    assert config_of("fp16").actor_rollout_ref.rollout.dtype == "float16"


REFERENCE = """
actor, reference = engine(), engine("+arms=kl_loss", part="ref")
assert reference._uses_fsdp2_cpu_offload_policy
assert torch.equal(logits_of(reference), logits_of(actor))
"""


def test_the_reference_model_computes_what_the_initial_actor_does():
    """In the actor's precision, so that the KL loss starts at nothing, and on the CPU without pinned memory."""
    done = python(ENGINE + REFERENCE)
    assert done.returncode == 0, done.stderr[-2000:]
