"""A backbone of half a million parameters, made on the spot, for a run that needs no download.

A Qwen2 with a byte-level tokenizer and a ChatML template, warm-started by supervised learning on the demo's
arithmetic, where a minority of the answers is worked out and the others are guesses: the model learns both behaviors,
and leaves it to RL to find out which one pays.
"""

import json
import random
import shutil
from pathlib import Path

from common.command import first_line
from common.files import check_place, write_text
from common.models import check_model, model_digest
from data_prep.demo.problems import TEST, TRAIN, Problem, all_problems, split
from data_prep.prompt import training_prompt

SETTINGS = {
    "seed": 0,
    "hidden_size": 128,
    "layers": 2,
    "vocab_size": 400,  # bytes, merges and special tokens at most
    "steps": 600,
    "batch_size": 16,
    "learning_rate": 4e-3,
    "all_worked": 0.7,  # fraction of the steps in which every answer is worked out
    "worked": 0.4,  # fraction of worked answers in the others
    "slips": 0.0,  # fraction of these with a mistake in the work
}
HARD = SETTINGS | {"slips": 0.5}
# A pretrained model can add, so few examples teach it the form; a tiny model's rate would undo what it knows.
PRETRAINED = SETTINGS | {"steps": 60, "learning_rate": 1e-4, "all_worked": 0.5}
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
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    texts = [f"{training_prompt(p.text)}\nsystem\nuser\nassistant\n{p.worked}" for p in all_problems()]
    tokenizer = Qwen2Tokenizer(model_max_length=MAX_POSITIONS).train_new_from_iterator(
        texts,
        vocab_size,
        new_special_tokens=[TURN_START, TURN_END],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.eos_token = TURN_END
    tokenizer.chat_template = CHATML
    return tokenizer


def build_model(tokenizer, settings: dict):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

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
    return Qwen2ForCausalLM(config)


def load_pretrained(name: str) -> tuple:
    """Load a model in fp32, and its tokenizer; ValueError if that fails or its chat template shows no problem."""
    problem = training_prompt(all_problems()[0].text)
    try:
        check_model(name)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name)
        turns, template = [{"role": "user", "content": problem}], tokenizer.chat_template
        shown = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) if template else ""
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    except Exception as error:  # transformers raises all sorts for a damaged file or a package that is missing
        raise ValueError(f"--init (JUSTRL_INIT) {name}: cannot be used: {first_line(error)}") from error
    if problem not in shown or not tokenizer.eos_token:
        lacks = "no chat template that shows the problem, or no end token"
        raise ValueError(f"--init (JUSTRL_INIT) {name}: has {lacks}; use an instruct model")
    return model, tokenizer


def supervised_examples(tokenizer, settings: dict) -> list[dict]:
    """Return the examples in their order; the loss covers only the answers.

    First all answers are worked out, so that few steps teach addition; then a minority, and the others are guesses.
    """
    rng = random.Random(settings["seed"])
    count = settings["steps"] * settings["batch_size"]
    problems = rng.choices(split(TRAIN, TEST, settings["seed"])[0], k=count)
    mixed_from = settings["all_worked"] * count
    answers = [
        problem.worked if number < mixed_from else mixed_answer(problem, settings, rng)
        for number, problem in enumerate(problems)
    ]
    turns = [[{"role": "user", "content": training_prompt(problem.text)}] for problem in problems]
    prompt_ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    endings = [answer + tokenizer.eos_token for answer in answers]
    answer_ids = tokenizer(endings, add_special_tokens=False)["input_ids"]
    return [
        {"input_ids": prompt + answer, "labels": [IGNORED_LABEL] * len(prompt) + answer}
        for prompt, answer in zip(prompt_ids, answer_ids, strict=True)
    ]


def mixed_answer(problem: Problem, settings: dict, rng: random.Random) -> str:
    """Return a worked answer, one with a mistake in its work, or a guess."""
    if rng.random() >= settings["worked"]:
        return problem.guess(rng)
    return problem.slip(rng) if settings["slips"] and rng.random() < settings["slips"] else problem.worked


def warm_start(model, tokenizer, examples: list[dict], settings: dict) -> None:
    """Train `model` in place on the examples in their order; not by a Trainer, whose import alone takes seconds."""
    import torch
    from transformers import DataCollatorForSeq2Seq

    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED_LABEL)
    batches = torch.utils.data.DataLoader(examples, settings["batch_size"], collate_fn=collator)
    steps = len(batches)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings["learning_rate"], steps, pct_start=0.05, anneal_strategy="linear", cycle_momentum=False
    )
    model.train()
    for step, batch in enumerate(batches, 1):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % max(1, steps // 10) == 0:
            print(f"  step {step:>4}/{steps}  loss {loss.item():.3f}", flush=True)


def write(path: Path, settings: dict, init: str | None = None, data: Path | None = None) -> None:
    """Build a backbone or load `init`, warm-start and save it, unless it is there; replaces only what it made."""
    given = {"init": init, "files": model_digest(init)} if init else {}
    made, text = path / SETTINGS_FILE, json.dumps(settings | given, indent=2) + "\n"
    for what, kept in (("model to begin with", init), ("folder of --data", data)):
        if kept and path.resolve() in (Path(kept).resolve(), *Path(kept).resolve().parents):
            raise ValueError(f"{path}: holds the {what}, which would be replaced; choose another --model")
    check_place(path)
    if path.exists() and not (made.is_file() or (path.is_dir() and not any(path.iterdir()))):
        raise ValueError(f"{path}: is there, and data_prep.demo did not make it; choose another --model")
    if made.is_file() and made.read_bytes() == text.encode():
        print(f"{path}: kept, its settings have not changed")
        return
    from transformers.utils import logging

    logging.disable_progress_bar()
    if init:
        model, tokenizer = load_pretrained(init)
    else:
        tokenizer = build_tokenizer(settings["vocab_size"])
        model = build_model(tokenizer, settings)
    print(f"{model.num_parameters() / 1e6:.2f} million parameters, {len(tokenizer)} tokens")
    warm_start(model, tokenizer, supervised_examples(tokenizer, settings), settings)
    folder = path.resolve()  # a link stays
    aside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    write_text(aside / SETTINGS_FILE, text)
    if folder.exists():  # renamed in one go: a start after a kill must know it for its own
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)  # of a kill while it was removed
        folder.replace(old)
        shutil.rmtree(old)
    aside.replace(folder)
    print(f"{path}: made")
