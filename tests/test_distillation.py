"""On-policy distillation: its loss by hand, the paper's values of `opd`, and what is refused before a start."""

from functools import partial

import numpy as np
import pytest

from common.command import first_line
from recipe import check, preflight
from recipe.compose import compose
from recipe.distillation import TEACHER, check_teacher, nodes_and_gpus
from recipe.plan import estimate
from tests.test_objective import hand_surrogate, make_batch, verl_loss


def teacher_batch():
    rng, batch = np.random.default_rng(2), make_batch()
    batch.teacher = [new + rng.normal(0, 1, len(new)) for new in batch.new]
    return batch


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_tokens_advantage_is_the_teachers_log_prob_less_the_policys(ranks):
    from verl.trainer.distillation import distillation_ppo_loss
    from verl.utils.config import omega_conf_to_dataclass

    config, batch = compose("opd", [], "cuda"), teacher_batch()
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    distillation = omega_conf_to_dataclass(config.distillation)
    function = partial(distillation_ppo_loss, config=actor, distillation_config=distillation)
    loss, gradient, parts = verl_loss(actor, batch, ranks, loss_function=function)
    assert len(parts) > ranks
    tokens = np.array(
        [
            hand_surrogate(np.exp(new - old), teacher - new, low=0.8, high=1.2, floor=3)
            for news, olds, teachers in zip(batch.new, batch.old, batch.teacher, strict=True)
            for new, old, teacher in zip(news, olds, teachers, strict=True)
        ]
    )
    assert loss == pytest.approx(-tokens[:, 0].mean(), rel=1e-10)
    np.testing.assert_allclose(gradient, -tokens[:, 1] / len(tokens), rtol=1e-10, atol=1e-15)
    other = verl_loss(actor, batch, ranks)[1]  # of the reward
    assert not np.allclose(gradient, other, rtol=1e-4, atol=1e-7)


def test_opd_differs_from_the_paper_in_what_it_lists():
    config, comparisons = check.compare("opd", [], "cuda", [])
    check.require_paper(comparisons)
    preflight.check_config(config)
    assert {c.stated.key for c in comparisons if c.status == "allowed"} == {
        "data.shuffle",
        "data.train_batch_size",
        "data.max_response_length",
        "actor_rollout_ref.actor.optim.lr_warmup_steps",
        "actor_rollout_ref.actor.optim.weight_decay",
        "actor_rollout_ref.rollout.n",
        "actor_rollout_ref.rollout.val_kwargs.n",
        "actor_rollout_ref.rollout.val_kwargs.top_p",
        "distillation.enabled",
        "trainer.total_training_steps",
        "trainer.save_freq",
        "trainer.test_freq",
    }
    assert config.distillation.teacher_models.teacher_model.model_path == "hbx/JustRL-DeepSeek-1.5B"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], (1, 8)),
        (["trainer.nnodes=2"], (2, 8)),
        (["trainer.nnodes=2", "trainer.n_gpus_per_node=8", "distillation.nnodes=1"], (3, 8)),
        (["trainer.nnodes=2", "distillation.enabled=false"], (2, 4)),
    ],
)
def test_the_teacher_has_gpus_of_its_own(overrides, expected):
    assert nodes_and_gpus(compose("opd", overrides, "cuda")) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distillation.n_gpus_per_node=0"], "an engine of the teacher takes 1 GPUs of a node"),
        ([f"{TEACHER}.inference.tensor_model_parallel_size=3"], "an engine of the teacher takes 3 GPUs of a node"),
        ([f"{TEACHER}.inference.max_model_len=100"], "max_model_len allows 100 tokens, and the teacher reads"),
    ],
)
def test_what_verl_would_find_late_is_one_line(overrides, message):
    with pytest.raises(ValueError) as raised:
        preflight.check_config(compose("opd", overrides, "cuda"))
    assert message in first_line(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("demo_data")
def test_the_teacher_must_exist_and_have_the_policys_tokenizer(tmp_path):
    from tokenizers import Tokenizer, models

    def problem(path):
        with pytest.raises(ValueError) as raised:
            check_teacher(compose("demo", ["+arms=distillation", f"{TEACHER}.model_path={path}"], "cpu"))
        return first_line(raised.value)

    assert "distillation needs a teacher" in problem("null")
    assert "no such folder" in problem(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    assert "its tokenizer is not that of models/demo" in problem(tmp_path)
    check_teacher(compose("demo", ["+arms=distillation", f"{TEACHER}.model_path=models/demo"], "cpu"))
    check_teacher(compose("demo", [], "cpu"))


def test_the_plan_divides_the_gpus_between_policy_and_teacher():
    config = compose("opd", [], "cuda")
    cost = estimate(config, "H100-80GB", 16)
    assert (config.trainer.n_gpus_per_node, config.distillation.n_gpus_per_node) == (8, 8)
    row = cost.scenarios["expected"]
    assert row["GPU hours"] == pytest.approx(row["days"] * 24 * 16)


def test_an_arm_that_the_teacher_makes_void_is_refused():
    with pytest.raises(ValueError, match="arms distillation and gspo do not go together: the teacher replaces reward"):
        compose("demo", ["+arms=[distillation,gspo]"], "cpu")
