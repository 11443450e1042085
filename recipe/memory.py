"""The memory of a GPU during a step, by phase and part: a model of what verl 0.9.1 allocates, read in its source.

FSDP shards fp32 weights, gradients and Adam's moments over all GPUs and computes in bf16, gradients are checkpointed,
log-probabilities and entropy are taken in blocks, and vLLM sleeps while the model is trained. `docs/gpu.md` says which
parts were compared with a measurement.
"""

import json
from pathlib import Path

from omegaconf import DictConfig

from recipe.paper import BACKBONES

GIB = 2**30
BACKBONE = next(iter(BACKBONES.values()))["shape"]
ENTROPY_ROWS = 2048  # verl's default chunk
LOG_PROBS_BLOCK = 4 * 2**26  # fp32, see recipe.verl_plugins.log_probs
BLOCK_COPIES = 3  # of a block that live at once
BUCKET = 2 * GIB  # verl's buffer for new weights
WORKSPACE = 3 * GIB  # assumed: vLLM's prefill and CUDA graphs
OUTSIDE = 3 * GIB  # assumed: CUDA contexts, NCCL, what a sleeping vLLM keeps


def model_shape(path: str | None) -> dict:
    """Return the config of a known hub id or of a local Qwen2.

    Raises:
        ValueError: it is neither.
    """
    file = Path(path or "") / "config.json"
    if not file.is_file() and path in BACKBONES:
        return BACKBONES[path]["shape"]
    try:
        shape = {"tie_word_embeddings": False} | (json.loads(file.read_text()) if file.is_file() else {})
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: no JSON ({error}); fetch the model again") from error
    if shape.get("model_type") != "qwen2" or BACKBONE.keys() - shape.keys():
        raise ValueError(
            f"actor_rollout_ref.model.path={path}: no folder of a Qwen2, and none of {', '.join(BACKBONES)}"
        )
    return shape


def key_value_size(shape: dict) -> int:
    """Return how many numbers a layer's keys have for a token, and its values as well."""
    return shape["hidden_size"] // shape["num_attention_heads"] * shape["num_key_value_heads"]


def layer_parameters(shape: dict) -> int:
    """Return the parameters of one layer: attention with its biases, MLP, two norms."""
    wide, narrow = shape["hidden_size"], key_value_size(shape)
    return 2 * wide * (wide + narrow) + 3 * wide * shape["intermediate_size"] + 3 * wide + 2 * narrow


def parameters(shape: dict, tables: int | None = None) -> int:
    """Return all parameters, or those with a given number of tables of the vocabulary's size."""
    tables, wide = tables or (1 if shape["tie_word_embeddings"] else 2), shape["hidden_size"]
    return shape["num_hidden_layers"] * layer_parameters(shape) + wide + tables * shape["vocab_size"] * wide


def phases(config: DictConfig, shape: dict, gpu_bytes: float, gpus: int) -> dict[str, dict[str, float]]:
    """Return phase to part to bytes on one GPU; each phase's sum is its peak.

    Args:
        shape: of the model, as `model_shape` gives it.
        gpu_bytes: memory of a GPU, of which the rollout takes its share.
        gpus: over all nodes.
    """
    ref = config.actor_rollout_ref
    actor, fsdp = ref.actor, ref.actor.fsdp_config
    in_host = bool(fsdp.offload_policy)  # weights, gradients and moments stay in the host's memory, in the update too
    count, table = parameters(shape), shape["vocab_size"] * shape["hidden_size"]
    sharded_over = fsdp.fsdp_size if 0 < fsdp.fsdp_size < gpus else gpus
    shard = 0.0 if in_host else 4 * count / sharded_over  # fp32
    moments = 2 * shard
    tokens = actor.ppo_max_token_len_per_gpu
    wide, layers, logits = shape["hidden_size"], shape["num_hidden_layers"], shape["vocab_size"]
    entropy = BLOCK_COPIES * 4 * ENTROPY_ROWS * logits
    # In bf16: FSDP's root, the vocabulary's tables, which stays gathered, two layers, the output table's gradient.
    gathered = 2 * (parameters(shape) - (layers - 2) * layer_parameters(shape)) + 2 * table
    checkpoints = 2 * tokens * wide * layers
    rollout = 2 * count / ref.rollout.tensor_model_parallel_size
    # On one GPU FSDP 1 does not free the weights that it offloads (its modules keep views of them).
    kept = shard if not fsdp.param_offload or (gpus == 1 and actor.strategy == "fsdp") else 0.0
    resting = {"weights": kept, "optimizer": 0.0 if fsdp.optimizer_offload else moments}
    training = {"weights": shard, "gradients": shard, "optimizer": moments, "gathered weights": gathered}
    return {
        "update": training
        | {
            # A layer's own activations and the logits never coexist: whichever is more.
            "activations": checkpoints + 4 * tokens * wide,
            "logits and their gradient": max(
                4 * tokens * logits + BLOCK_COPIES * LOG_PROBS_BLOCK,
                2 * tokens * (17 * wide + 6 * shape["intermediate_size"]),
            ),
        },
        "old log-probs": {
            "weights": shard,
            "optimizer": resting["optimizer"],
            "gathered weights": gathered,
            "activations": 2 * tokens * (17 * wide + 3 * shape["intermediate_size"]),
            "logits": 2 * tokens * logits + entropy,
        },
        "weight transfer": resting
        | {"weights": shard, "copies": shard + 4 * table, "rollout weights": rollout, "bucket": BUCKET},
        "generation": resting
        | {
            "rollout weights": rollout,
            "rollout workspace": WORKSPACE,
            "KV cache": ref.rollout.gpu_memory_utilization * gpu_bytes - rollout - WORKSPACE,
        },
    }


def needed(found: dict[str, dict[str, float]]) -> float:
    """Return the bytes that a GPU must have for every phase, what lies outside torch included."""
    return OUTSIDE + max(sum(parts.values()) for parts in found.values())


def demand(config: DictConfig, gpus: int) -> dict[str, float]:
    """Return what a run asks of each of its GPUs, whatever their size.

    Returns:
        `share`, of the memory, which the rollout takes; `beside`, the bytes that stay beside it; `training`, the bytes
        at the peak of the other phases. The last two are 0 for a model whose shape is not known.
    """
    share = config.actor_rollout_ref.rollout.gpu_memory_utilization
    try:
        found = phases(config, model_shape(config.actor_rollout_ref.model.path), 0.0, gpus)
    except ValueError:
        return {"share": share, "beside": 0.0, "training": 0.0}
    generation = found.pop("generation")
    beside = OUTSIDE + generation["weights"] + generation["optimizer"]
    return {"share": share, "beside": beside, "training": needed(found)}


def cache_bytes(config: DictConfig, shape: dict) -> float:
    """Return the bytes of keys and values of the longest sequence, which the cache must hold at least."""
    return config.actor_rollout_ref.rollout.max_model_len * token_bytes(shape)


def token_bytes(shape: dict) -> int:
    """Return the bytes of keys and values of one token, in bf16 over all layers."""
    return 2 * 2 * shape["num_hidden_layers"] * key_value_size(shape)
