"""verl's single-turn agent loop, for a Qwen2 that speaks DeepSeek's tokens; named in `agent_loops.yaml`."""

from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

TURN_END = "<|im_end|>"


class DistillAgentLoop(SingleTurnAgentLoop):
    """Choose verl's handling of chat tokens by the tokenizer where verl 0.9.1 goes by the model's type alone.

    DeepSeek-R1-Distill-Qwen has the type qwen2, for which `QwenContinuousTokenBuilder` demands `<|im_end|>`, and a
    tokenizer without it: every rollout would fail (verl issue 7637). Without a type verl takes its plain builder,
    which applies the chat template and no more: all that a single turn needs.
    """

    def __init__(self, *args, tokenizer, hf_model_type: str | None = None, **kwargs):
        if tokenizer.convert_tokens_to_ids(TURN_END) is None:
            hf_model_type = None
        super().__init__(*args, tokenizer=tokenizer, hf_model_type=hf_model_type, **kwargs)
