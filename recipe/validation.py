"""Validation responses that may be longer than training's, through verl's plugin points.

verl 0.9.1 ends both at `data.max_response_length`: vLLM's server takes that limit where the sampling parameters
hold none (`vLLMHttpServer.generate`), and the single-turn agent loop cuts there again. What comes after, reward,
TransferQueue and validation metrics, takes responses as long as they are: V1 pads no response to a fixed length.
"""

from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
from verl.utils.tensordict_utils import assign_non_tensor_data, get_non_tensor_data

AGENT_NAME = "validation"  # of the loop below in `rollout.agent.agent_loop_config_path`


class ValidationAgentLoop(SingleTurnAgentLoop):
    """verl's single turn, ended at `rollout.custom.validation_response_length` tokens or the model's window."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.response_length = self.rollout_config.custom.validation_response_length

    async def run(self, sampling_params: dict, **kwargs) -> AgentLoopOutput:
        """Generate one response; arguments as in `SingleTurnAgentLoop.run`."""
        return await super().run(sampling_params | {"max_tokens": self.response_length}, **kwargs)


class AgentLoopManager(AgentLoopManagerTQ):
    """verl's manager, which has that loop answer validation prompts; named by `agent_loop_manager_class`."""

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Dispatch prompts, as `AgentLoopManagerTQ.generate_sequences` does; training prompts are left as they are."""
        if get_non_tensor_data(prompts, "validate", False):
            assign_non_tensor_data(prompts, "agent_name", AGENT_NAME)
        super().generate_sequences(prompts)
