"""Every shipped config composes, the demo is still JustRL, and a mistyped key is found wherever it stands."""

import shutil

import pytest
from omegaconf import OmegaConf

from recipe import compose as module
from recipe.compose import compose, config_names

# What makes JustRL JustRL (paper, table 2, and the released script); the demo must not change any of it.
JUSTRL = {
    "algorithm.adv_estimator": "grpo",
    "algorithm.norm_adv_by_std_in_grpo": True,
    "algorithm.use_kl_in_reward": False,
    "algorithm.filter_groups.enable": False,
    "actor_rollout_ref.actor.clip_ratio_low": 0.2,
    "actor_rollout_ref.actor.clip_ratio_high": 0.28,
    "actor_rollout_ref.actor.clip_ratio_c": 10.0,
    "actor_rollout_ref.actor.use_kl_loss": False,
    "actor_rollout_ref.actor.entropy_coeff": 0,
    "actor_rollout_ref.actor.loss_agg_mode": "token-mean",
    "actor_rollout_ref.actor.ppo_epochs": 1,
    "actor_rollout_ref.actor.grad_clip": 1.0,
    "actor_rollout_ref.actor.optim.lr_scheduler_type": "constant",
    "actor_rollout_ref.rollout.name": "vllm",
    "actor_rollout_ref.rollout.n": 8,
    "actor_rollout_ref.rollout.temperature": 1.0,
    "actor_rollout_ref.rollout.val_kwargs.temperature": 0.7,
    "actor_rollout_ref.rollout.val_kwargs.top_p": 0.9,
    "reward.reward_manager.name": "dapo",
}
PAPER_SIZES = {
    "data.train_batch_size": 256,
    "data.max_prompt_length": 1024,
    "data.max_response_length": 15360,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 64,
    "actor_rollout_ref.actor.optim.lr": 1e-6,
    "actor_rollout_ref.actor.optim.lr_warmup_steps": 10,
    "actor_rollout_ref.actor.optim.weight_decay": 0.1,
    "trainer.save_freq": 50,
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", config_names())
def test_every_config_composes_and_is_justrl(name, device):
    config = compose(name, [], device)
    for key, value in JUSTRL.items():
        assert OmegaConf.select(config, key) == value, key
    updates = config.data.train_batch_size // config.actor_rollout_ref.actor.ppo_mini_batch_size
    assert updates == 4


@pytest.mark.parametrize("name", ["justrl_deepseek", "justrl_nemotron"])
def test_the_backbones_have_the_papers_sizes(name):
    config = compose(name, [], "cuda")
    for key, value in PAPER_SIZES.items():
        assert OmegaConf.select(config, key) == value, key


def test_the_backbones_differ_in_model_steps_and_name_alone():
    def flat(value, prefix=""):
        if not isinstance(value, dict):
            return {prefix: str(value)}
        return {k: v for key, child in value.items() for k, v in flat(child, f"{prefix}.{key}").items()}

    one, other = (flat(OmegaConf.to_container(compose(n, [], "cuda"))) for n in ("justrl_deepseek", "justrl_nemotron"))
    different = {key for key in one if one[key] != other[key]}
    derived = ("justrl_deepseek", one[".actor_rollout_ref.model.path"])  # verl and the recipe repeat both names
    assert {key for key in different if one[key] not in derived and "/justrl_deepseek/" not in one[key]} == {
        ".trainer.total_training_steps"
    }


def test_overrides_win():
    assert compose("demo", ["trainer.total_training_steps=3"], "cpu").trainer.total_training_steps == 3


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("demoo", None, "unknown config 'demoo'; there are demo"),
        ("demo", "actor_rollout_ref.actor.clip_ratio_hihg=0.3", "did you mean actor_rollout_ref.actor.clip_ratio_high"),
        ("demo", "+trainer.save_frq=3", "unknown key trainer.save_frq; did you mean trainer.save_freq"),
        ("demo", "trainer.save_freq", "Error parsing override"),
        ("demo", "trainer.experiment_name=${nowhere}", "nowhere"),
    ],
)
def test_wrong_use_is_one_line(name, override, message):
    with pytest.raises(ValueError) as caught:
        compose(name, [override] if override else [], "cpu")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_mistyped_inside_a_yaml_file_is_found(tmp_path, monkeypatch):
    folder = tmp_path / "config"
    shutil.copytree(module.CONFIG_FOLDER, folder)
    text = (folder / "demo.yaml").read_text()
    (folder / "demo.yaml").write_text(text.replace("total_training_steps", "total_trainig_steps"))
    monkeypatch.setattr(module, "CONFIG_FOLDER", folder)
    with pytest.raises(ValueError, match=r"unknown key trainer\.total_trainig_steps; did you mean"):
        compose("demo", [], "cpu")


def test_the_device_must_be_one_of_two(monkeypatch):
    monkeypatch.setenv("JUSTRL_DEVICE", "tpu")
    with pytest.raises(ValueError, match="use cpu or cuda"):
        module.device()
