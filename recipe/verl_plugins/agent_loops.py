"""verl's single-turn agent loop, for a tokenizer that verl 0.9.1 refuses, and for validation with longer responses.

verl truncates all responses at `data.max_response_length`: in vLLM's server where the sampling parameters set no limit
(`vLLMHttpServer.generate`), and in the single-turn loop. Reward, TransferQueue and validation metrics take responses
of any length.
"""

from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
from verl.utils.tensordict_utils import assign_non_tensor_data, get_non_tensor_data

TURN_END = "<|im_end|>"
VALIDATION = "validation"  # name of the loop for validation in agent_loops.yaml


class SingleTurn(SingleTurnAgentLoop):
    """Selects verl's handling of chat tokens by the tokenizer, where verl 0.9.1 goes by the model's type alone.

    DeepSeek-R1-Distill-Qwen has the type qwen2, for which `QwenContinuousTokenBuilder` requires `<|im_end|>`, and a
    tokenizer without it: every rollout would fail (verl issue 7637). Without a type verl uses its plain builder, which
    only applies the chat template: all that a single turn needs.
    """

    def __init__(self, *args, tokenizer, hf_model_type: str | None = None, **kwargs):
        if tokenizer.convert_tokens_to_ids(TURN_END) is None:
            hf_model_type = None
        super().__init__(*args, tokenizer=tokenizer, hf_model_type=hf_model_type, **kwargs)


class Validation(SingleTurn):
    """The same, truncated at `rollout.custom.validation_response_length` tokens or the engine's window."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.response_length = self.rollout_config.custom.validation_response_length

    async def run(self, sampling_params: dict, **kwargs) -> AgentLoopOutput:
        return await super().run(sampling_params | {"max_tokens": self.response_length}, **kwargs)


class AgentLoopManager(AgentLoopManagerTQ):
    """verl's manager, which gives validation prompts to that loop."""

    def generate_sequences(self, prompts: TensorDict) -> None:
        if get_non_tensor_data(prompts, "validate", False):
            assign_non_tensor_data(prompts, "agent_name", VALIDATION)
        super().generate_sequences(prompts)
