"""On-policy distillation: what a teacher adds to a run's machines, and what must hold before anything starts."""

from pathlib import Path

from omegaconf import DictConfig

from common.models import check_model

TEACHER = "distillation.teacher_models.teacher_model"


def teacher_gpus(config: DictConfig) -> int:
    """Count the GPUs of the teacher, which are its own; 0 without one."""
    distillation = config.distillation
    return distillation.nnodes * distillation.n_gpus_per_node if distillation.enabled else 0


def models(config: DictConfig) -> list[str | None]:
    """Return the paths of a run's models: the policy's and, with distillation, the teacher's."""
    teacher = [config.distillation.teacher_models.teacher_model.model_path] if config.distillation.enabled else []
    return [config.actor_rollout_ref.model.path, *teacher]


def nodes_and_gpus(config: DictConfig) -> tuple[int, int]:
    """Return the nodes of a run and the GPUs of each, the teacher's included.

    With as many nodes as the policy the teacher has GPUs on each of them; otherwise it has nodes of its own.
    """
    nodes, gpus = config.trainer.nnodes, config.trainer.n_gpus_per_node
    if not teacher_gpus(config):
        return nodes, gpus
    more_nodes, more_gpus = config.distillation.nnodes, config.distillation.n_gpus_per_node
    return (nodes, gpus + more_gpus) if nodes == more_nodes else (nodes + more_nodes, max(gpus, more_gpus))


def check_distillation(config: DictConfig) -> None:
    """Check what verl would find minutes into a start; ValueError of one line."""
    if not config.distillation.enabled:
        return
    teacher = config.distillation.teacher_models.teacher_model.inference
    each = teacher.tensor_model_parallel_size * teacher.data_parallel_size
    gpus = config.distillation.n_gpus_per_node
    if not teacher_gpus(config) or gpus % each:
        raise ValueError(
            f"distillation.enabled: an engine of the teacher takes {each} GPUs of a node, and there are "
            f"distillation.n_gpus_per_node={gpus} on distillation.nnodes={config.distillation.nnodes}; give it a "
            f"multiple, or change {TEACHER}.inference.tensor_model_parallel_size"
        )
    tokens = config.data.max_prompt_length + config.data.max_response_length + 1
    if teacher.max_model_len and teacher.max_model_len < tokens:
        raise ValueError(
            f"{TEACHER}.inference.max_model_len allows {teacher.max_model_len} tokens, and the teacher reads prompt, "
            f"response and one more: {tokens}; raise it"
        )


def check_teacher(config: DictConfig) -> None:
    """Check that there is a teacher, and that it has the policy's tokens: it scores their ids; or raise ValueError."""
    if not config.distillation.enabled:
        return
    model, policy = config.distillation.teacher_models.teacher_model.model_path, config.actor_rollout_ref.model.path
    if not model:
        raise ValueError("distillation needs a teacher; set it to a folder or hub id")
    check_model(model, config.data.max_prompt_length + config.data.max_response_length + 1)
    vocabularies = [vocabulary(path) for path in (model, policy)]
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:  # verl would score other tokens
        raise ValueError(f"{model}: its tokenizer is not that of {policy}; use one that shares it")


def vocabulary(model: str) -> dict[str, int] | None:
    """Return the tokens and ids of a model; None where it has no tokenizer.json, or its hub cannot be reached."""
    import httpx
    from huggingface_hub import hf_hub_download
    from tokenizers import Tokenizer

    path = Path(model).expanduser() / "tokenizer.json"
    if not path.parent.is_dir():
        try:
            path = Path(hf_hub_download(model, path.name))
        except (OSError, ValueError, httpx.HTTPError):
            return None
    return Tokenizer.from_file(str(path)).get_vocab() if path.is_file() else None
