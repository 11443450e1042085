"""A backbone of under a million parameters, made on the spot, for a run that needs no download.

python -m data_prep.demo.model --output models/demo

A Qwen2 with a byte-level tokenizer and a ChatML template, warm-started by supervised learning on
the demo's arithmetic, where a minority of the answers is worked out and the others are guesses: it
solves a minority of the problems, and RL has something to do. Kept, and made again only when its settings change.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

from common.command import run
from common.files import write_text
from data_prep.demo.problems import all_problems, split
from data_prep.prompt import training_prompt

SETTINGS_FILE = "justrl_backbone.json"

# verl's Qwen chat handling wants <|im_end|> to exist and a newline to be exactly one token.
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MAX_POSITIONS = 32768
IGNORED_LABEL = -100


def build_tokenizer(vocab_size: int):
    """Return Qwen2's byte-level tokenizer with a few merges learned from the demo's sentences."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    texts = [f"{training_prompt(p.text)}\nsystem\nuser\nassistant\n{p.worked}" for p in all_problems()]
    tokenizer = Qwen2Tokenizer(model_max_length=MAX_POSITIONS).train_new_from_iterator(
        texts, vocab_size, new_special_tokens=[TURN_START, TURN_END], initial_alphabet=ByteLevel.alphabet()
    )
    tokenizer.eos_token = TURN_END
    tokenizer.chat_template = CHATML
    return tokenizer


def build_model(tokenizer, settings: dict):
    """Return a freshly initialised Qwen2 for `tokenizer`."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(settings["seed"])
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=settings["hidden_size"],
        intermediate_size=3 * settings["hidden_size"],
        num_hidden_layers=settings["layers"],
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id)
    return model


def supervised_examples(tokenizer, settings: dict) -> list[dict]:
    """Return the demo's training problems with answers; the loss covers only the answers.

    A share of the answers is worked out and right, the others are guesses: the model learns both manners,
    and leaves it to RL to find out which one pays.
    """
    rng = random.Random(settings["seed"])
    examples = []
    for problem in split(settings["train"], settings["test"], settings["data_seed"])[0]:
        turn = [{"role": "user", "content": training_prompt(problem.text)}]
        prompt_ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        for _ in range(settings["repeats"]):
            answer = problem.worked if rng.random() < settings["worked"] else problem.guess(rng)
            answer_ids = tokenizer(answer + tokenizer.eos_token)["input_ids"]
            labels = [IGNORED_LABEL] * len(prompt_ids) + answer_ids
            examples.append({"input_ids": prompt_ids + answer_ids, "labels": labels})
    return examples


def warm_start(model, tokenizer, examples: list[dict], settings: dict) -> None:
    """Train `model` in place on the examples with Hugging Face's Trainer, a line printed now and then."""
    import tempfile

    from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Lines(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                print(f"  step {state.global_step:>4}/{state.max_steps}  loss {float(logs['loss']):.3f}", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=settings["steps"],
            per_device_train_batch_size=settings["batch_size"],
            learning_rate=settings["learning_rate"],
            lr_scheduler_type="linear",
            warmup_steps=20,
            weight_decay=0.0,
            logging_steps=max(1, settings["steps"] // 10),
            save_strategy="no",
            report_to=[],
            seed=settings["seed"],
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
        )
        collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED_LABEL)
        trainer = Trainer(model, arguments, train_dataset=examples, data_collator=collator, callbacks=[Lines()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def is_made(path: Path, settings: dict) -> bool:
    """Return whether `path` holds a backbone of these settings; its settings file is written last."""
    try:
        return json.loads((path / SETTINGS_FILE).read_text()) == settings
    except (FileNotFoundError, json.JSONDecodeError):
        return False


def make(path: Path, settings: dict) -> None:
    """Build, warm-start and save a backbone; whatever lay at `path` is replaced."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = build_tokenizer(settings["vocab_size"])
    model = build_model(tokenizer, settings)
    print(f"{model.num_parameters() / 1e6:.2f} million parameters, {len(tokenizer)} tokens")
    examples = supervised_examples(tokenizer, settings)
    warm_start(model, tokenizer, examples, settings)
    aside = path.with_name(f".{path.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    write_text(aside / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
    shutil.rmtree(path, ignore_errors=True)
    aside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--steps", type=int, default=400, help="supervised steps (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="examples a step (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak rate (default %(default)s)")
    parser.add_argument("--hidden-size", type=int, default=128, help="width (default %(default)s)")
    parser.add_argument("--layers", type=int, default=2, help="depth (default %(default)s)")
    parser.add_argument(
        "--vocab-size", type=int, default=400, help="bytes, merges and specials at most (default %(default)s)"
    )
    parser.add_argument("--worked", type=float, default=0.4, help="share of worked answers (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=4, help="answers a problem (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and order (default %(default)s)")
    parser.add_argument("--data-seed", type=int, default=0, help="seed of the problems (default %(default)s)")
    parser.add_argument("--train", type=int, default=3584, help="as for data_prep.demo.problems (default %(default)s)")
    parser.add_argument("--test", type=int, default=256, help="as for data_prep.demo.problems (default %(default)s)")
    args = parser.parse_args()
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    if is_made(args.output, settings):
        print(f"{args.output}: kept, its settings have not changed")
        return
    make(args.output, settings)
    print(f"{args.output}: made")


if __name__ == "__main__":
    run(main)
