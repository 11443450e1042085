"""Whether prompts fit their limit, without transformers, whose import takes torch and seconds."""

import time
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment
from omegaconf import DictConfig

from common.json_lines import read_json
from data_prep.rows import open_rows


def shortest(files: list[str], folder: Path, limit: int) -> int:
    """Return the tokens, in a model's chat template, of the first prompt within a limit, else of the shortest.

    Raises whatever jinja2 and tokenizers raise, which is nothing narrow.
    """
    from tokenizers import Tokenizer

    settings, beside = read_json(folder / "tokenizer_config.json"), folder / "chat_template.jinja"
    written = beside.read_text() if beside.is_file() else settings["chat_template"]
    special = {name: value for name, value in settings.items() if name.endswith("_token") and value}
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    jinja.globals["strftime_now"] = time.strftime
    template, tokenizer, found = jinja.from_string(written), Tokenizer.from_file(str(folder / "tokenizer.json")), 0
    prompts = [prompt for path in files for prompt in open_rows(path).read(columns=["prompt"])["prompt"].to_pylist()]
    for prompt in sorted(prompts, key=lambda prompt: len(str(prompt))):
        text = template.render(messages=prompt, add_generation_prompt=True, **special)
        tokens = len(tokenizer.encode(text, add_special_tokens=False))
        found = min(found or tokens, tokens)
        if found <= limit:
            break
    return found


def check_prompts(config: DictConfig, files: list[str]) -> None:
    """Check that a training prompt is within the limit: verl drops the others, or ends at the first."""
    data, model = config.data, config.actor_rollout_ref.model
    cut = not data.filter_overlong_prompts and data.truncation != "error"
    if cut or model.custom_chat_template or model.tokenizer_path:
        return
    try:
        tokens = shortest(files, Path(model.path).expanduser(), data.max_prompt_length)
    except Exception:  # a name on the hub, or a template or tokenizer that only transformers can read
        return
    if tokens > data.max_prompt_length:
        limit = f"data.max_prompt_length={data.max_prompt_length}"
        raise ValueError(f"{limit}: with the chat template the shortest training prompt has {tokens} tokens; raise it")
