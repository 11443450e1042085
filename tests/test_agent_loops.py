"""verl's agent loop accepts both backbones' tokenizers, and its prompts are those of the chat template.

The tokenizers are built here: byte-level, with the special tokens of DeepSeek-R1-Distill-Qwen or of Qwen.
"""

import asyncio
import json

import pytest
from omegaconf import OmegaConf

from recipe.compose import compose

BAR, BLANK = "\uff5c", "\u2581"  # as DeepSeek writes them
BEGIN, END = (f"<{BAR}{word}{BLANK}of{BLANK}sentence{BAR}>" for word in ("begin", "end"))
USER, ASSISTANT = (f"<{BAR}{word}{BAR}>" for word in ("User", "Assistant"))
DEEPSEEK = [BEGIN, END, USER, ASSISTANT, "<think>", "</think>"]
DEEPSEEK_TEMPLATE = (
    f"{{{{ bos_token }}}}{{% for m in messages %}}{{{{ '{USER}' + m['content'] }}}}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{{{{ '{ASSISTANT}<think>\n' }}}}{{% endif %}}"
)
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURN = [{"role": "user", "content": "What is 1+1?"}]


def tokenizer_of(folder, tokens: list[str], template: str):
    """Load a Qwen2 folder's tokenizer that has the special `tokens` with AutoTokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_tokens([AddedToken(token, special=True) for token in tokens])
    raw.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "LlamaTokenizerFast",  # as in DeepSeek's repository, incorrectly
        "bos_token": tokens[0],
        "eos_token": tokens[1],
        "pad_token": tokens[1],
        "unk_token": None,
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
    return AutoTokenizer.from_pretrained(folder)


def loop_of(loop_class, tokenizer):
    """Build an agent loop as verl's worker does for a model of type qwen2."""
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap

    config = compose("justrl_deepseek", [], "cuda")
    return loop_class(
        trainer_config=DictConfigWrap(config=config),
        server_manager=None,
        tokenizer=tokenizer,
        processor=None,
        hf_model_type="qwen2",
        dataset_cls=None,
        data_config=DictConfigWrap(config.data),
    )


@pytest.mark.parametrize(("tokens", "template"), [(DEEPSEEK, DEEPSEEK_TEMPLATE), (QWEN, QWEN_TEMPLATE)])
def test_prompt_is_what_the_chat_template_gives(tmp_path, tokens, template):
    from hydra.utils import get_class

    agent = compose("justrl_deepseek", [], "cuda").actor_rollout_ref.rollout.agent
    entry = next(e for e in OmegaConf.load(agent.agent_loop_config_path) if e.name == agent.default_agent_loop)
    tokenizer = tokenizer_of(tmp_path, tokens, template)

    async def prompt_ids() -> list[int]:
        return await loop_of(get_class(entry["_target_"]), tokenizer).ct_build_initial_tokens(TURN)

    expected = tokenizer.apply_chat_template(TURN, add_generation_prompt=True, tokenize=False)
    assert asyncio.run(prompt_ids()) == tokenizer.encode(expected, add_special_tokens=False)


def test_verl_itself_refuses_the_distilled_tokenizer(tmp_path):
    """The reason for the class; when this fails, verl has changed, and the class can go."""
    from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

    async def build():
        loop_of(SingleTurnAgentLoop, tokenizer_of(tmp_path, DEEPSEEK, DEEPSEEK_TEMPLATE))

    with pytest.raises(ValueError, match=r"required token '<\|im_end\|>'"):
        asyncio.run(build())
