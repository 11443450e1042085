"""What the paper and its release state, as keys of verl 0.9.1's config, each with its source and what it affects."""

from pathlib import Path
from typing import Any, NamedTuple

from recipe import attention

PAPER = "paper, table 2"
TEXT = "paper, section 2"
SCRIPT = "released launch script"
VERL = "verl 0.4.0, which the release ran"


class Value(NamedTuple):
    """One stated value.

    Attributes:
        key: dotted key of the composed config.
        value: what it must be.
        source: who states it.
        affects: what another value changes.
        machine: whether it changes speed and memory alone, so that another value is no difference in learning.
    """

    key: str
    value: Any
    source: str
    affects: str
    machine: bool = False


# Model to training steps (paper, section 3). A local copy is known by its folder's name.
BACKBONES = {"deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 4380, "nvidia/OpenMath-Nemotron-1.5B": 3440}

_ACTOR, _ROLLOUT, _VALIDATION = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "in-training validation"
_SAMPLER = "trainer.v1.sampler.custom_sampler"
_OFF = "a trick that the paper leaves out"
_KL = "a pull towards the backbone that the paper leaves out"

VALUES = (
    Value("data.train_batch_size", 256, PAPER, "prompts a step"),
    Value("data.max_prompt_length", 1024, PAPER, "which prompts are dropped"),
    Value("data.max_response_length", 15360, PAPER, "where responses are cut off"),
    Value("data.filter_overlong_prompts", True, SCRIPT, "which prompts are dropped"),
    Value("data.truncation", "error", SCRIPT, "whether prompts are cut"),
    Value("data.shuffle", True, VERL, "order of the data"),
    Value("data.seed", 1, VERL, "order of the data"),
    Value("data.train_max_samples", -1, VERL, "the data"),
    Value("data.val_max_samples", -1, VERL, _VALIDATION),
    Value("algorithm.adv_estimator", "grpo", PAPER, "advantages"),
    Value("algorithm.norm_adv_by_std_in_grpo", True, SCRIPT, "advantages: divided by the group's deviation"),
    Value("algorithm.use_kl_in_reward", False, PAPER, _KL),
    Value("algorithm.filter_groups.enable", False, TEXT, "dynamic sampling: " + _OFF),
    Value("algorithm.use_pf_ppo", False, TEXT, _OFF),
    Value("algorithm.rollout_correction.rollout_is", None, VERL, "importance weights that 0.4 did not have"),
    Value("algorithm.rollout_correction.rollout_rs", None, VERL, "rejection that 0.4 did not have"),
    Value(
        "algorithm.rollout_correction.bypass_mode", False, VERL, "whose log-probabilities the ratio is taken against"
    ),
    Value(f"{_ACTOR}.ppo_mini_batch_size", 64, PAPER, "prompts an update, so 4 updates a step"),
    Value(f"{_ACTOR}.ppo_epochs", 1, SCRIPT, "passes over a step's responses"),
    Value(f"{_ACTOR}.shuffle", False, VERL, "order of the mini-batches"),
    Value(f"{_ACTOR}.clip_ratio_low", 0.2, PAPER, "clip range"),
    Value(f"{_ACTOR}.clip_ratio_high", 0.28, PAPER, "clip range: clip-higher"),
    Value(f"{_ACTOR}.clip_ratio_c", 10.0, SCRIPT, "dual clip of negative advantages"),
    Value(f"{_ACTOR}.loss_agg_mode", "token-mean", SCRIPT, "weight of long responses"),
    Value(f"{_ACTOR}.policy_loss.loss_mode", "vanilla", VERL, "the loss"),
    Value(f"{_ACTOR}.use_kl_loss", False, PAPER, _KL),
    Value(f"{_ACTOR}.kl_loss_coef", 0.0, SCRIPT, _KL),
    Value(f"{_ACTOR}.entropy_coeff", 0, PAPER, "entropy bonus: " + _OFF),
    Value(f"{_ACTOR}.optim.clip_grad", 1.0, SCRIPT, "size of an update"),
    Value(f"{_ACTOR}.optim.optimizer", "AdamW", VERL, "the optimizer"),
    Value(f"{_ACTOR}.optim.lr", 1e-6, PAPER, "learning rate"),
    Value(f"{_ACTOR}.optim.lr_scheduler_type", "constant", PAPER, "learning rate"),
    Value(f"{_ACTOR}.optim.lr_warmup_steps", 10, SCRIPT, "learning rate of the first updates"),
    Value(f"{_ACTOR}.optim.weight_decay", 0.1, SCRIPT, "the optimizer"),
    Value(f"{_ACTOR}.optim.betas", [0.9, 0.999], VERL, "the optimizer"),
    Value("actor_rollout_ref.model.lora_rank", 0, TEXT, "which weights are trained"),
    Value("actor_rollout_ref.model.lora.rank", 0, TEXT, "which weights are trained"),
    Value(f"{_ROLLOUT}.n", 8, PAPER, "responses of a prompt"),
    Value(f"{_ROLLOUT}.temperature", 1.0, PAPER, "sampling of responses"),
    Value(f"{_ROLLOUT}.top_p", 1.0, SCRIPT, "sampling of responses"),
    Value(f"{_ROLLOUT}.top_k", -1, SCRIPT, "sampling of responses"),
    Value(f"{_ROLLOUT}.do_sample", True, VERL, "sampling of responses"),
    Value(f"{_ROLLOUT}.ignore_eos", False, VERL, "where responses end"),
    Value(f"{_ROLLOUT}.over_sample_rate", 0, VERL, "which responses are used"),
    Value(f"{_ROLLOUT}.agent.default_agent_loop", "single_turn", TEXT, "turns of a response"),
    Value(f"{_ROLLOUT}.multi_turn.enable", False, TEXT, "turns of a response"),
    Value(f"{_ROLLOUT}.val_kwargs.n", 32, SCRIPT, _VALIDATION),
    Value(f"{_ROLLOUT}.custom.validation_response_length", 31744, SCRIPT, _VALIDATION),
    Value(f"{_ROLLOUT}.val_kwargs.do_sample", True, SCRIPT, _VALIDATION),
    Value(f"{_ROLLOUT}.val_kwargs.temperature", 0.7, SCRIPT, _VALIDATION),
    Value(f"{_ROLLOUT}.val_kwargs.top_p", 0.9, SCRIPT, _VALIDATION),
    Value(f"{_ROLLOUT}.val_kwargs.top_k", -1, VERL, _VALIDATION),
    Value("reward.reward_manager.name", "dapo", SCRIPT, "how the reward is put together"),
    Value("reward.custom_reward_function.path", "reward/justrl.py", PAPER, "the reward"),
    Value("reward.custom_reward_function.name", "compute_score", SCRIPT, "the reward"),
    Value("reward.custom_reward_function.reward_kwargs.window", 100, SCRIPT, "the reward: where the box must be"),
    Value("reward.custom_reward_function.reward_kwargs.wrong", -1.0, SCRIPT, "the reward's scale"),
    Value("reward.reward_kwargs.overlong_buffer_cfg.enable", False, TEXT, "length penalty: " + _OFF),
    Value("reward.reward_model.enable", False, TEXT, "the reward"),
    Value("distillation.enabled", False, TEXT, "the loss"),
    Value("trainer.v1.trainer_mode", "sync", VERL, "whether responses come from the policy that learns from them"),
    Value(f"{_SAMPLER}.path", "pkg://recipe.verl_plugins.replay_buffer", VERL, "what a mini-batch holds"),
    Value(f"{_SAMPLER}.name", "ReplayBuffer", VERL, "what a mini-batch holds"),
    Value("trainer.critic_warmup", 0, SCRIPT, "when the policy starts to learn"),
    Value("trainer.save_freq", 50, SCRIPT, "which checkpoints there are"),
    Value("trainer.test_freq", 50, SCRIPT, _VALIDATION),
    Value("trainer.val_before_train", True, SCRIPT, _VALIDATION),
    Value("data.val_files", ["AIME24.parquet", "AIME25.parquet", "AMC23.parquet"], SCRIPT, _VALIDATION),
    Value("actor_rollout_ref.model.path", list(BACKBONES), PAPER, "the backbone"),
    Value("trainer.total_training_steps", list(BACKBONES.values()), "paper, section 3", "length of the run"),
    # Machine-shaped: with the loss a mean over the mini-batch's tokens, none of these reaches the gradient.
    Value("trainer.nnodes", 4, SCRIPT, "speed", machine=True),
    Value("trainer.n_gpus_per_node", 8, SCRIPT, "speed", machine=True),
    Value(f"{_ACTOR}.strategy", "fsdp", SCRIPT, "speed and memory", machine=True),
    Value(f"{_ACTOR}.ppo_micro_batch_size_per_gpu", 1, PAPER, "speed and memory", machine=True),
    Value(f"{_ACTOR}.use_dynamic_bsz", True, SCRIPT, "speed and memory", machine=True),
    Value(f"{_ACTOR}.ppo_max_token_len_per_gpu", 32768, SCRIPT, "speed and memory", machine=True),
    Value(f"{_ACTOR}.ulysses_sequence_parallel_size", 1, SCRIPT, "speed and memory", machine=True),
    Value(f"{_ACTOR}.fsdp_config.dtype", "bfloat16", VERL, "speed, memory and rounding", machine=True),
    Value(f"{_ACTOR}.fsdp_config.param_offload", False, SCRIPT, "speed and memory", machine=True),
    Value(f"{_ACTOR}.fsdp_config.optimizer_offload", False, SCRIPT, "speed and memory", machine=True),
    Value("actor_rollout_ref.model.enable_gradient_checkpointing", True, SCRIPT, "speed and memory", machine=True),
    Value("actor_rollout_ref.model.use_remove_padding", True, SCRIPT, "speed and memory", machine=True),
    Value(attention.KEY, "flash_attention_2", VERL, "speed, memory and rounding", machine=True),
    Value(f"{_ROLLOUT}.name", "vllm", SCRIPT, "speed and rounding", machine=True),
    Value(f"{_ROLLOUT}.dtype", "bfloat16", VERL, "speed, memory and rounding", machine=True),
    Value(f"{_ROLLOUT}.tensor_model_parallel_size", 1, SCRIPT, "speed and memory", machine=True),
    Value(f"{_ROLLOUT}.gpu_memory_utilization", 0.85, SCRIPT, "speed and memory", machine=True),
    Value(f"{_ROLLOUT}.max_num_batched_tokens", 32768, SCRIPT, "speed and memory", machine=True),
    Value(f"{_ROLLOUT}.max_model_len", 32768, SCRIPT, "speed and memory", machine=True),
    Value(f"{_ROLLOUT}.max_num_seqs", 1024, VERL, "speed and memory", machine=True),
)


def stated(key: str) -> Any:
    """Return the value that the paper or its release states for a key; KeyError if they state none."""
    return {value.key: value.value for value in VALUES}[key]


def backbone(model: str | None) -> str | None:
    """Return the paper's backbone that a hub id or a local folder is named after; None for another model."""
    path = Path(str(model))
    local = path.is_absolute() or path.is_dir()
    return next((known for known in BACKBONES if model == known or (local and path.name == Path(known).name)), None)
