"""The memory of a GPU during a step, by phase and part: a model of what verl 0.9.1 allocates, read in its source.

FSDP shards fp32 weights, gradients and Adam's moments over all GPUs and computes in bf16, gradients are checkpointed,
log-probabilities and entropy are computed in blocks, and vLLM sleeps while the model is trained. On one H100 the peak
of the update and of all phases together were 5 % and 2 % below this model (docs/gpu.md).
"""

import json
from pathlib import Path

from omegaconf import DictConfig

from recipe.paper import BACKBONES

GIB = 2**30
BACKBONE = next(iter(BACKBONES.values()))["shape"]
SHAPES = {name: known["shape"] for name, known in BACKBONES.items()} | {
    "Qwen/Qwen2.5-0.5B-Instruct": {  # its config.json
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    }
}
ENTROPY_ROWS = 2048  # verl's default chunk
LOG_PROBS_BLOCK = 4 * 2**26  # fp32, see recipe.verl_plugins.log_probs
BLOCK_COPIES = 3  # of a block that live at once
BUCKET = 2 * GIB  # verl's buffer for new weights
WORKSPACE = 3 * GIB  # assumed: vLLM's prefill and CUDA graphs
OUTSIDE = 3 * GIB  # assumed: CUDA contexts, NCCL, what a sleeping vLLM keeps


def model_shape(path: str | None) -> dict:
    """Return the config of a known hub id or of a local Qwen2 or Llama; ValueError if it is neither."""
    file = Path(path or "") / "config.json"
    if not file.is_file() and path in SHAPES:
        return SHAPES[path]
    try:
        loaded = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); fetch the model again") from error
    shape = {"tie_word_embeddings": False} | (loaded if isinstance(loaded, dict) else {})
    sizes = [shape.get(name) for name in BACKBONE if name != "tie_word_embeddings"]
    usable = all(isinstance(size, int) and size > 0 for size in sizes) and token_bytes(shape) > 0
    if shape.get("model_type") not in ("qwen2", "llama") or not usable:
        raise ValueError(
            f"actor_rollout_ref.model.path={path}: not a folder of a Qwen2 or Llama; use one, or {' or '.join(SHAPES)}"
        )
    return shape


def key_size(shape: dict) -> int:
    """Return the numbers per token in one layer's keys; its values have as many."""
    return shape["hidden_size"] // shape["num_attention_heads"] * shape["num_key_value_heads"]


def token_bytes(shape: dict) -> int:
    """Return the bytes per token in the KV cache: keys and values of all layers, in bf16."""
    return 2 * 2 * shape["num_hidden_layers"] * key_size(shape)


def layer_parameters(shape: dict) -> int:
    """Count the parameters of a layer: attention with a Qwen2's biases, MLP, two norms."""
    hidden, keys = shape["hidden_size"], key_size(shape)
    biases = 0 if shape.get("model_type") == "llama" else hidden + 2 * keys
    return 2 * hidden * (hidden + keys) + 3 * hidden * shape["intermediate_size"] + 2 * hidden + biases


def parameters(shape: dict, tables: int | None = None) -> int:
    """Count all parameters, or those with a given number of tables of the vocabulary's size."""
    tables, hidden = tables or (1 if shape["tie_word_embeddings"] else 2), shape["hidden_size"]
    return shape["num_hidden_layers"] * layer_parameters(shape) + hidden + tables * shape["vocab_size"] * hidden


def phases(config: DictConfig, shape: dict, gpu_bytes: float, gpus: int) -> dict[str, dict[str, float]]:
    """Estimate phase to part to bytes on one GPU; the sum of a phase is its peak.

    `gpu_bytes` is the memory of one GPU, `gpus` their number over all nodes.
    """
    rollout, actor = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor
    fsdp, tokens = actor.fsdp_config, actor.ppo_max_token_len_per_gpu
    hidden, mlp, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    table, logits = shape["vocab_size"] * hidden, tokens * shape["vocab_size"]
    sharded_over = fsdp.fsdp_size if 0 < fsdp.fsdp_size < gpus else gpus
    # With this policy weights, gradients and moments stay in the host's memory, in the update too.
    weights = 0.0 if fsdp.offload_policy else 4 * parameters(shape) / sharded_over  # fp32
    # On one GPU FSDP 1 does not free the weights that it offloads: its modules keep views of them.
    keeps_weights = not fsdp.param_offload or (gpus == 1 and actor.strategy == "fsdp")
    resting = {
        "weights": weights if keeps_weights else 0.0,
        "optimizer": 0.0 if fsdp.optimizer_offload else 2 * weights,
    }
    # In bf16: FSDP's root, the vocabulary's tables, which stays gathered, two layers, the output table's gradient.
    gathered = 2 * (parameters(shape) - (layers - 2) * layer_parameters(shape)) + 2 * table
    computing = {"weights": weights, "gathered weights": gathered}
    served = 2 * parameters(shape) / rollout.tensor_model_parallel_size
    # A layer's own activations and the logits with their gradient never coexist: the larger counts.
    copies = 3 if actor.entropy_coeff else 2  # an entropy bonus has a gradient of its own
    layer_or_logits = max(2 * copies * logits + BLOCK_COPIES * LOG_PROBS_BLOCK, 2 * tokens * (17 * hidden + 6 * mlp))
    return {
        "update": computing
        | {"gradients": weights, "optimizer": 2 * weights}
        | {"activations": 2 * tokens * hidden * (layers + 2), "logits and their gradient": layer_or_logits},
        "old log-probs": computing
        | {"optimizer": resting["optimizer"], "activations": 2 * tokens * (17 * hidden + 3 * mlp)}
        | {"logits": 2 * logits + BLOCK_COPIES * 4 * ENTROPY_ROWS * shape["vocab_size"]},
        "weight transfer": resting
        | {"weights": weights, "copies": weights + 4 * table, "rollout weights": served, "bucket": BUCKET},
        "generation": resting
        | {"rollout weights": served, "rollout workspace": WORKSPACE}
        | {"KV cache": rollout.gpu_memory_utilization * gpu_bytes - served - WORKSPACE},
    }


def needed(memory: dict[str, dict[str, float]]) -> float:
    """Return the bytes that a GPU must have for every phase, including what lies outside torch."""
    return OUTSIDE + max(sum(parts.values()) for parts in memory.values())


def demand(config: DictConfig, gpus: int) -> dict[str, float]:
    """Return what a run requires of each of its GPUs, whatever their size.

    `share` is the fraction of memory that the rollout takes, `beside` the bytes that stay beside it, `training` the
    peak of the other phases in bytes. The last two are 0 for a model of unknown shape.
    """
    share = config.actor_rollout_ref.rollout.gpu_memory_utilization
    try:
        memory = phases(config, model_shape(config.actor_rollout_ref.model.path), 0.0, gpus)
    except ValueError:
        return {"share": share, "beside": 0.0, "training": 0.0}
    generation = memory.pop("generation")
    beside = OUTSIDE + generation["weights"] + generation["optimizer"]
    return {"share": share, "beside": beside, "training": needed(memory)}
