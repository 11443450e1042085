"""vLLM on the CPU as a rollout whose weights can be replaced in every step."""

import torch
import vllm.model_executor.layers.utils as vllm_layers

from recipe.verl_plugins.weight_transfer import WorkerExtension


def keep_weight_unpacked(layer: torch.nn.Module, remove_weight: bool) -> None:
    """Replace vLLM's `dispatch_cpu_unquantized_gemm`, which packs the weight so that no other can be loaded into it."""
    layer.cpu_linear = torch.nn.functional.linear


class CPUWorkerExtension(WorkerExtension):
    """Leaves every linear layer as it was loaded; vLLM builds it before the model."""

    def __new__(cls, **kwargs):
        vllm_layers.dispatch_cpu_unquantized_gemm = keep_weight_unpacked
        return super().__new__(cls, **kwargs)
