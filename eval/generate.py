"""Sample responses of a model with vLLM: python -m eval.generate --model M --bench DIR --output DIR

Every parquet file in --bench is a task, named by the file. The defaults are the released protocol:
temperature 0.7, top-p 0.9, up to 31,744 new tokens, the prompt with one space before the boxed sentence,
32 samples a problem and 4 for the three large benchmarks. Samples that are on disk are not generated again.

example: python -m eval.generate --model models/demo --bench data/demo --tasks test --samples 4 \\
             --max-tokens 64 --prompt training --output outputs/demo/eval/base
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import sys
import traceback
from pathlib import Path

import pandas as pd

from data_prep.benchmarks import BENCHMARKS
from data_prep.command import run as run_command
from data_prep.files import sha256, write_text_whole
from data_prep.parquet import read_rows
from data_prep.prompt import evaluation_prompt, training_prompt
from recipe.preflight import check_model
from recipe.processes import run_lock
from recipe.progress import cause

PROMPTS = {"evaluation": evaluation_prompt, "training": training_prompt}
DEFAULT_SAMPLES = 32  # of a task that is not one of the paper's
SAMPLES_A_WRITE = 1024  # at most this much is lost to a kill
CPU_KV_CACHE_BYTES = 256 * 2**20
# Settings that decide what a sample is: a folder made with others is not mixed with these.
FINGERPRINTED = ("model", "weights", "prompt", "temperature", "top_p", "max_tokens", "base_seed")


def sample_seed(base_seed: int, task: str, problem_id: str, sample: int) -> int:
    """Return a 31-bit seed that depends on nothing but its arguments.

    Hashed, because vLLM's children of consecutive seeds would share random streams between problems.
    """
    digest = hashlib.sha256(json.dumps([base_seed, task, problem_id, sample]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def read_samples(path: Path) -> list[dict]:
    """Read a samples file; a last line torn by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    samples = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            samples.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON; restore the file or delete it") from error
    return samples


def wanted_samples(task: str, rows: pd.DataFrame, prompt: str, samples: int, base_seed: int) -> list[dict]:
    """Return a record for every sample of a task, all fields but those of the response."""
    wanted = []
    for row in rows.to_dict("records"):
        problem_id = str(row["extra_info"]["index"])
        for sample in range(samples):
            wanted.append(
                {
                    "task": task,
                    "problem_id": problem_id,
                    "sample": sample,
                    "seed": sample_seed(base_seed, task, problem_id, sample),
                    "prompt": PROMPTS[prompt](row["extra_info"]["problem"]),
                    "answer": row["reward_model"]["ground_truth"],
                }
            )
    return wanted


def check_fingerprint(path: Path, settings: dict) -> None:
    """Write a task's settings, or compare them with those that made the samples already there.

    Raises:
        ValueError: they differ; the message names the first that does.
    """
    if path.exists():
        there = json.loads(path.read_text())
        for name in FINGERPRINTED:
            if there.get(name) != settings[name]:
                raise ValueError(
                    f"{path.parent}: its samples were made with {name}={there.get(name)}, not {settings[name]}; "
                    "delete the folder or choose another --output"
                )
    write_text_whole(path, json.dumps(settings, indent=2) + "\n")


def weights_digest(model: str) -> str | None:
    """Return a digest of a local model's weights, since a folder can hold others tomorrow; None for a hub id."""
    files = sorted(Path(model).glob("*.safetensors"))
    return hashlib.sha256("".join(sha256(path) for path in files).encode()).hexdigest() if files else None


def start_engine(model: str, longest_prompt: int, max_tokens: int):
    """Return a vLLM engine, on the CPU with what that needs."""
    from vllm import LLM
    from vllm.platforms import current_platform

    length = longest_prompt + max_tokens
    options = {"model": model, "max_model_len": length}
    if current_platform.is_cpu():
        options |= {
            "dtype": "float32",
            "enforce_eager": True,  # compiling takes longer than a tiny model's whole evaluation
            "enable_chunked_prefill": False,  # a seeded prompt that is split crashes vLLM's CPU generator
            "max_num_batched_tokens": max(8192, length),
            "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES,
        }
    return LLM(**options)


@contextlib.contextmanager
def output_into(log_path: Path):
    """Send everything that this process prints into a log; yields a file that still reaches the terminal.

    By descriptor and to the process's end: vLLM's C++ parts print too, some only at exit.
    """
    terminal = os.fdopen(os.dup(1), "w", buffering=1)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        yield terminal
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        print(f"eval.generate: failed: {cause(log_path)}\n  see {log_path}", file=terminal)
        raise SystemExit(1) from error


def generate(engine, tokenizer, missing: list[dict], path: Path, args: argparse.Namespace, terminal) -> None:
    """Generate the missing samples and append them to `path`, a chunk at a time."""
    from tqdm import tqdm
    from vllm import SamplingParams

    bar = functools.partial(tqdm, file=terminal, leave=False) if terminal.isatty() else False
    for start in range(0, len(missing), SAMPLES_A_WRITE):
        chunk = missing[start : start + SAMPLES_A_WRITE]
        prompts = [{"prompt_token_ids": prompt_ids(tokenizer, record["prompt"])} for record in chunk]
        parameters = [
            SamplingParams(
                temperature=args.temperature, top_p=args.top_p, max_tokens=args.max_tokens, seed=record["seed"]
            )
            for record in chunk
        ]
        outputs = engine.generate(prompts, parameters, use_tqdm=bar)
        with open(path, "a") as file:
            for record, output in zip(chunk, outputs, strict=True):
                completion = output.outputs[0]
                response = {
                    "response": completion.text,
                    "tokens": len(completion.token_ids),
                    "finish_reason": completion.finish_reason,
                }
                file.write(json.dumps(record | response, ensure_ascii=False) + "\n")
        print(f"  {path.name}: {start + len(chunk)} of {len(missing)} samples", file=terminal)


def prompt_ids(tokenizer, prompt: str) -> list[int]:
    """Return the token ids of one user turn in the model's chat template."""
    turn = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)


def run(args: argparse.Namespace) -> None:
    """Generate what is missing in every task."""
    from transformers import AutoTokenizer

    check_model(args.model)
    files = {path.stem: path for path in sorted(args.bench.glob("*.parquet"))}
    tasks = args.tasks.split(",") if args.tasks else list(files)
    if not tasks:
        raise ValueError(f"{args.bench}: has no parquet file; prepare it with data_prep.benchmarks")
    settings = {name: getattr(args, name) for name in FINGERPRINTED if name != "weights"}
    settings["weights"] = weights_digest(args.model)
    missing: dict[str, list[dict]] = {}
    for task in tasks:
        if task not in files:
            raise ValueError(f"unknown task '{task}'; {args.bench} has {', '.join(files)}")
        path = args.output / f"{task}.samples.jsonl"
        check_fingerprint(args.output / f"{task}.meta.json", settings)
        done = read_samples(path)
        if path.exists() and not path.read_text().endswith("\n"):
            write_text_whole(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in done))
        keys = {(record["problem_id"], record["sample"]) for record in done}
        samples = args.samples or (BENCHMARKS[task].samples if task in BENCHMARKS else DEFAULT_SAMPLES)
        wanted = wanted_samples(task, read_rows(files[task]), args.prompt, samples, args.base_seed)
        missing[task] = [record for record in wanted if (record["problem_id"], record["sample"]) not in keys]
    if not any(missing.values()):
        print(f"{args.output}: all samples are there")
        return
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    longest = max(len(prompt_ids(tokenizer, record["prompt"])) for records in missing.values() for record in records)
    log_path = args.output / "generate.log"
    print(f"  {sum(map(len, missing.values()))} samples of {args.model}, vLLM's output in {log_path}", flush=True)
    with output_into(log_path) as terminal:
        engine = start_engine(args.model, longest, args.max_tokens)
        for task, records in missing.items():
            generate(engine, tokenizer, records, args.output / f"{task}.samples.jsonl", args, terminal)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--bench", type=Path, required=True, help="folder of prepared parquet files, one a task")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to, or to continue")
    parser.add_argument("--tasks", help="comma-separated names (default: every file of --bench)")
    parser.add_argument("--samples", type=int, help="samples a problem (default: the protocol's, 32 or 4)")
    parser.add_argument("--temperature", type=float, default=0.7, help="default %(default)s")
    parser.add_argument("--top-p", type=float, default=0.9, help="default %(default)s")
    parser.add_argument("--max-tokens", type=int, default=31744, help="new tokens at most (default %(default)s)")
    parser.add_argument("--prompt", choices=sorted(PROMPTS), default="evaluation", help="default %(default)s")
    parser.add_argument("--base-seed", type=int, default=0, help="every sample's seed derives from it")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # starts faster, and dies with this process
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    with run_lock(args.output):
        run(args)


if __name__ == "__main__":
    run_command(main)
