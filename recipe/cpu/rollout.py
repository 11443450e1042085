"""vLLM on the CPU as a rollout whose weights can be replaced at every step."""

import torch
import vllm.model_executor.layers.utils as vllm_layers

from recipe.verl_plugins.weight_transfer import WorkerExtension


def keep_weight_unpacked(layer: torch.nn.Module, remove_weight: bool) -> None:
    """Stand in for vLLM's `dispatch_cpu_unquantized_gemm`, which packs the weight once and for all.

    A packed weight cannot be loaded into again, and RL loads new ones after every step.
    """
    layer.cpu_linear = torch.nn.functional.linear


class CPUWorkerExtension(WorkerExtension):
    """The run's worker extension, which leaves every linear layer as it was loaded.

    Named by `rollout.engine_kwargs.vllm.worker_extension_cls`; vLLM builds it before the model.
    """

    def __new__(cls, **kwargs):
        vllm_layers.dispatch_cpu_unquantized_gemm = keep_weight_unpacked
        return super().__new__(cls, **kwargs)
