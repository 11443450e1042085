"""Sample responses of a model with vLLM on Ray: python -m eval.generate --model M --bench DIR --output DIR

Every parquet file in --bench is a task, named by the file. The defaults are the released protocol:
temperature 0.7, top-p 0.9, up to 31,744 new tokens, the prompt with one space before the boxed sentence,
32 samples a problem and 4 for the three large benchmarks. Samples that are on disk are not generated again, so the
same command continues what was interrupted, also with another number of workers.

One GPU, eight, or a Ray cluster (RAY_ADDRESS): an engine on every GPU, or --workers of them. With --endpoint a server
that is there answers, and --model is its name for the model.

example: python -m eval.generate --model models/demo --bench data/demo --tasks test --samples 4 \\
             --max-tokens 64 --prompt training --output outputs/demo/eval/base
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from common.command import positive, within
from common.command import run as run_command
from common.files import sha256, write_text
from common.locks import run_lock
from common.machine import Demand, device, in_use, lacks
from common.models import check_model
from common.processes import ProcessRecord, become_subreaper
from common.progress import cause, duration
from data_prep.benchmarks import BENCHMARKS
from data_prep.prompt import evaluation_prompt, training_prompt
from data_prep.rows import read_rows
from eval.engines import GPU_OPTIONS, Endpoint, answer_all, engine_options, ray_engines
from eval.samples import ENDING, format_line, read_json, read_samples, repair

PROMPTS = {"evaluation": evaluation_prompt, "training": training_prompt}
DEFAULT_SAMPLES = 32  # of a task that is not one of the paper's
SAY_EVERY_SECONDS = 20.0  # where there is no terminal for a bar
RECORD_SECONDS = 2.0  # between looks at which processes were started
MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".txt")  # weights, configs, tokenizer, template
# Settings that decide what a sample is: a folder made with others is not mixed with these.
FINGERPRINTED = ("model", "revision", "files", "endpoint", "problems", "prompt", "temperature", "top_p", "max_tokens")
FINGERPRINTED += ("base_seed",)


def sample_seed(base_seed: int, task: str, problem_id: str, sample: int) -> int:
    """Return a 31-bit seed that depends on nothing but its arguments.

    Hashed, because vLLM's children of consecutive seeds would share random streams between problems.
    """
    digest = hashlib.sha256(json.dumps([base_seed, task, problem_id, sample]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def wanted_samples(task: str, rows: pd.DataFrame, prompt: str, samples: int, base_seed: int) -> list[dict]:
    """Return a record for every sample of a task, all fields but those of the response."""
    wanted = []
    for row in rows.to_dict("records"):
        extra = row["extra_info"]
        if not {"index", "problem"} <= extra.keys():
            raise ValueError(f"{task}: rows lack extra_info.index or .problem; prepare it with data_prep.benchmarks")
        problem_id = str(extra["index"])
        for sample in range(samples):
            wanted.append(
                {
                    "task": task,
                    "problem_id": problem_id,
                    "sample": sample,
                    "seed": sample_seed(base_seed, task, problem_id, sample),
                    "prompt": PROMPTS[prompt](extra["problem"]),
                    "answer": extra.get("released") or row["reward_model"]["ground_truth"],
                }
            )
    return wanted


def check_fingerprint(path: Path, settings: dict) -> None:
    """Compare a task's settings with those in `path`, which made the samples that are there.

    Raises:
        ValueError: they differ, or are not known; the message names the first that does.
    """
    there = read_json(path, "model")
    for name in FINGERPRINTED:
        if there.get(name) != settings[name]:
            raise ValueError(
                f"{path.parent}: its samples were made with {name}={there.get(name)}, not {settings[name]}; "
                "delete the folder or choose another --output"
            )


def digest(parts: list[str]) -> str:
    """Return a short digest of texts in their order."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def model_digest(model: str) -> str | None:
    """Return a digest of a local model's files, since a folder can hold others tomorrow; None for a hub id."""
    files = sorted(path for path in Path(model).glob("*") if path.suffix in MODEL_FILES)
    return digest([text for path in files for text in (path.name, sha256(path))]) if files else None


@contextlib.contextmanager
def output_into(log_path: Path, command: str):
    """Send everything that this process prints into a log; yields a file that still reaches the terminal.

    By descriptor: Ray's and vLLM's C++ parts print too.
    """
    terminal, errors = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    start = os.lseek(log, 0, os.SEEK_END)

    def redirect(out: int, err: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(out, 1)
        os.dup2(err, 2)

    redirect(log, log)
    try:
        yield terminal
    except (ValueError, OSError):
        raise
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        print(f"{command}: failed: {cause(log_path, start)}\n  see {log_path}", file=errors)
        raise SystemExit(1) from error
    finally:
        redirect(terminal.fileno(), errors.fileno())


class Progress:
    """A bar of finished responses, tokens a second and time left; a line now and then where there is no terminal."""

    def __init__(self, total: int, terminal):
        self.total, self.terminal, self.tokens, self.finished = total, terminal, 0, 0
        self.started = self.said = time.monotonic()
        self.bar = tqdm(total=total, file=terminal, unit=" responses") if terminal.isatty() else None

    def add(self, tokens: int) -> None:
        self.finished, self.tokens, now = self.finished + 1, self.tokens + tokens, time.monotonic()
        rate = self.tokens / max(1e-9, now - self.started)
        if self.bar is not None:
            self.bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
            self.bar.update()
        elif now - self.said > SAY_EVERY_SECONDS or self.finished == self.total:
            self.said = now
            left = duration((now - self.started) / self.finished * (self.total - self.finished))
            print(f"  {self.finished} of {self.total} responses, {rate:,.0f} tokens/s, {left} left", file=self.terminal)


@contextlib.contextmanager
def one_driver(folder: Path) -> Iterator[None]:
    """Hold a folder of samples: end what a dead driver left, record what this one starts, and end it at the end."""

    def keep_record() -> None:
        while not ended.wait(RECORD_SECONDS):
            record.update()

    with run_lock(folder):
        record, ended = ProcessRecord(folder), threading.Event()
        if left := record.end_stale():
            print(f"  ended {left} processes that a dead run had left", flush=True)
        become_subreaper()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        keeper = threading.Thread(target=keep_record, daemon=True)
        keeper.start()
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            ended.set()
            keeper.join()
            record.end_descendants()


@contextlib.asynccontextmanager
async def started_engines(args: argparse.Namespace, length: int, sampling: dict):
    """Yield the engines that `args` names, and what they say of themselves."""
    if args.endpoint:
        engines = [Endpoint(url, args.model, sampling) for url in args.endpoint]
        yield engines, [await engine.describe() for engine in engines]
        return
    options = engine_options(args.model, length, args.tensor_parallel) | {"revision": args.revision}
    async with ray_engines(options, sampling, args.workers) as engines:
        yield engines, [await engines[0].actor.describe.remote()]


def tokenize(model: str, revision: str | None, records: list[dict]) -> int:
    """Give records their `prompt_ids`, one user turn in the model's chat template; return the longest's length.

    Raises:
        OSError: the hub has no such model, or cannot be reached.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
    made: dict[str, list[int]] = {}
    for record in records:
        if (text := record["prompt"]) not in made:
            turn = [{"role": "user", "content": text}]
            made[text] = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        record["prompt_ids"] = made[text]
    return max(map(len, made.values()))


def plan(args: argparse.Namespace) -> tuple[list[dict], dict[str, dict]]:
    """Return a record for every sample that is missing, and each task's settings, which are compared with its folder's.

    Raises:
        ValueError: an unknown task, samples of other settings, a damaged file.
    """
    files = {path.stem: path for path in sorted(args.bench.glob("*.parquet"))}
    tasks = list(dict.fromkeys(args.tasks.split(","))) if args.tasks else list(files)
    if not tasks:
        raise ValueError(f"{args.bench}: has no parquet file; prepare it with data_prep.benchmarks")
    for task in tasks:
        if task not in files:
            raise ValueError(f"unknown task '{task}'; {args.bench} has {', '.join(files)}")
    shared = {name: getattr(args, name, None) for name in FINGERPRINTED}
    shared |= {"endpoint": bool(args.endpoint), "files": model_digest(args.model)}
    missing, settings = [], {}
    for task in tasks:
        path = args.output / f"{task}{ENDING}"
        samples = args.samples or (BENCHMARKS[task].samples if task in BENCHMARKS else DEFAULT_SAMPLES)
        wanted = wanted_samples(task, read_rows(files[task]), args.prompt, samples, args.base_seed)
        if len({(record["problem_id"], record["sample"]) for record in wanted}) < len(wanted):
            raise ValueError(f"{files[task]}: two rows have the same extra_info.index; prepare it again")
        problems = digest([text for record in wanted[::samples] for text in (record["prompt"], record["answer"])])
        settings[task] = shared | {"task": task, "problems": problems, "samples": samples}
        settings[task]["problem_count"] = len(wanted) // samples
        if torn := repair(path):
            print(f"  {path}: {torn} torn lines dropped; those samples are generated again")
        there = {(record["problem_id"], record["sample"]) for record in (read_samples(path) if path.exists() else [])}
        if there:
            check_fingerprint(args.output / f"{task}.meta.json", settings[task])
        if (most := max((sample for _, sample in there), default=0) + 1) > samples:
            raise ValueError(f"{path}: has {most} samples a problem; give --samples {most} or another --output")
        missing += [record for record in wanted if (record["problem_id"], record["sample"]) not in there]
    return missing, settings


async def generate(records: list[dict], settings: dict, args, length: int, terminal) -> list[tuple]:
    """Have every record answered, its sample appended to its task's file at once; return what `answer_all` does."""
    sampling = {name: getattr(args, name) for name in ("temperature", "top_p", "max_tokens")}
    async with started_engines(args, length, sampling) as (engines, described):
        for task, values in settings.items():
            text = json.dumps(values | {"engines": described}, indent=2)
            write_text(args.output / f"{task}.meta.json", text + "\n")
        progress = Progress(len(records), terminal)
        with contextlib.ExitStack() as stack:
            files = {task: stack.enter_context(open(args.output / f"{task}{ENDING}", "a")) for task in settings}

            def done(record: dict, result: dict) -> None:
                fields = {name: value for name, value in record.items() if name != "prompt_ids"}
                files[record["task"]].write(format_line(fields | result))
                files[record["task"]].flush()
                progress.add(result["tokens"] or 0)

            return await answer_all(records, engines, done)


def check_gpus(args: argparse.Namespace) -> None:
    """Raise a ValueError of one line if this machine's GPUs cannot serve the engines, or something else uses them."""
    if device() == "cpu" or os.environ.get("RAY_ADDRESS"):
        return
    demand = Demand((args.workers or 1) * args.tensor_parallel, GPU_OPTIONS["gpu_memory_utilization"])
    if problems := lacks(demand) or in_use(demand):
        raise ValueError(problems[0])


def run(args: argparse.Namespace) -> int:
    """Generate what is missing in every task and return the exit status."""
    if not args.endpoint:
        check_model(args.model)
    with one_driver(args.output):
        missing, settings = plan(args)
        if not missing:
            print(f"{args.output}: all samples are there")
            return 0
        length = 0
        if not args.endpoint:
            length = tokenize(args.model, args.revision, missing) + args.max_tokens
            check_model(args.model, length)
            check_gpus(args)
        log_path = args.output / "generate.log"
        print(f"  {len(missing)} samples of {args.model}, the engines' output in {log_path}", flush=True)
        with output_into(log_path, "eval.generate") as terminal:
            failed = asyncio.run(generate(missing, settings, args, length, terminal))
        if failed:
            print(f"  {len(failed)} samples failed: {str(failed[0][1])[:300]}; the same command tries them again")
        return int(bool(failed))


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says where a model runs."""
    parser.add_argument("--revision", help="of a hub id: a commit, branch or tag")
    parser.add_argument("--workers", type=positive, help="engines (default: one on every GPU, or one on a CPU)")
    parser.add_argument("--tensor-parallel", type=positive, default=1, help="GPUs of one engine, on one node")
    parser.add_argument(
        "--endpoint",
        action="append",
        metavar="URL",
        help="of an OpenAI-compatible server; repeatable. Start vLLM's with --generation-config vllm: else it adds "
        "the model's own top-k and penalties to the protocol",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id; with --endpoint, the server's name for it")
    parser.add_argument("--bench", type=Path, required=True, help="folder of prepared parquet files, one a task")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to, or to continue")
    parser.add_argument("--tasks", help="comma-separated names (default: every file of --bench)")
    parser.add_argument("--samples", type=positive, help="samples a problem (default: the protocol's, 32 or 4)")
    parser.add_argument("--temperature", type=within(0, 100), default=0.7, help="default %(default)s")
    parser.add_argument("--top-p", type=within(1e-6, 1), default=0.9, help="default %(default)s")
    parser.add_argument("--max-tokens", type=positive, default=31744, help="new tokens at most (default %(default)s)")
    parser.add_argument("--prompt", choices=sorted(PROMPTS), default="evaluation", help="default %(default)s")
    parser.add_argument("--base-seed", type=int, default=0, help="every sample's seed derives from it")
    add_engine_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    run_command(main)
