"""The samples that tasks need: read from prepared parquet files, compared with what is on disk."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import digest
from common.json_lines import damaged_path, drop_damaged, name_lines, read_json
from common.models import model_digest
from data_prep.benchmarks import BENCHMARKS
from data_prep.prompt import evaluation_prompt, training_prompt
from data_prep.rows import read_problem_rows
from eval.engines import ModelSettings
from eval.samples import ENDING, OURS, PROTOCOL, SHAPES, SHARED, check_alike, find_samples, read_samples, settings_of

PROMPTS = {"evaluation": evaluation_prompt, "training": training_prompt}
DEFAULT_SAMPLES = 32  # of a task that is not in the table of benchmarks


@dataclass(frozen=True)
class SampleSettings:
    """What is sampled, how and how often: `samples` per problem, None for the released protocol's number."""

    bench: Path
    output: Path
    tasks: str | None
    samples: int | None
    prompt: str
    temperature: float
    top_p: float
    max_tokens: int
    base_seed: int

    def count(self, task: str) -> int:
        return self.samples or (BENCHMARKS[task].samples if task in BENCHMARKS else DEFAULT_SAMPLES)


def sample_seed(base_seed: int, task: str, problem_id: str, sample: int) -> int:
    """Return a 31-bit seed that depends on nothing but its arguments.

    Hashed, because vLLM's children of consecutive seeds would share random streams between problems.
    """
    hashed = hashlib.sha256(json.dumps([base_seed, task, problem_id, sample]).encode()).digest()
    return int.from_bytes(hashed[:4], "big") >> 1


def wanted_samples(task: str, rows: list[dict], prompt: str, samples: int, base_seed: int) -> list[dict]:
    """Make a record for every sample of a task from its rows: all but the response's fields."""
    wanted = {}
    for row in rows:
        extra = row["extra_info"]
        problem_id = str(extra["index"])
        if (problem_id, 0) in wanted:
            raise ValueError(f"{task}.parquet: two rows have the same extra_info.index, {problem_id}; prepare it again")
        for sample in range(samples):
            wanted[problem_id, sample] = {
                "task": task,
                "problem_id": problem_id,
                "sample": sample,
                "seed": sample_seed(base_seed, task, problem_id, sample),
                "prompt": PROMPTS[prompt](extra["problem"]),
                "answer": extra.get("released") or row["reward_model"]["ground_truth"],
            }
    return list(wanted.values())


def task_files(bench: Path, names: str | None) -> dict[str, Path]:
    """Map tasks to prepared files: those that are named, with commas between, or all; ValueError for an unknown one."""
    files = {path.stem: path for path in sorted(bench.glob("*.parquet"))}
    if not files:
        raise ValueError(f"{bench}: has no parquet file; prepare it with data_prep.benchmarks")
    tasks = dict.fromkeys(names.split(",") if names else files)
    for task in tasks:
        if task not in files:
            raise ValueError(f"unknown task '{task}'; {bench} has {', '.join(files)}")
    return {task: files[task] for task in tasks}


def check_fingerprint(path: Path, settings: dict) -> None:
    """Compare a task's settings with those in `path`, which made the samples that are there."""
    there = read_json(path, shape=SHAPES["settings"], fix="delete the folder or choose another --output")
    for name in (*SHARED, "problems"):
        if name in there and there[name] != settings.get(name):
            raise ValueError(
                f"{path}: its samples were made with {name}={there[name]!r:.99}, not {settings.get(name)!r}; "
                "delete the folder or choose another --output"
            )


def without_done(wanted: list[dict], path: Path, settings: dict) -> list[dict]:
    """Leave out the samples that are in a file already; ValueError if other settings made it, or it is damaged."""
    if damaged := drop_damaged(path):
        print(f"  {name_lines(path, damaged)}; moved to {damaged_path(path)}, those samples are generated again")
    done = {(record["problem_id"], record["sample"]) for record in (read_samples(path) if path.exists() else [])}
    if done:
        check_fingerprint(path.with_name(f"{settings['task']}.meta.json"), settings)
    if (most := max((sample for _, sample in done), default=0) + 1) > settings["samples"]:
        raise ValueError(f"{path}: has {most} samples per problem; give --samples {most} or another --output")
    return [record for record in wanted if (record["problem_id"], record["sample"]) not in done]


def missing_samples(settings: SampleSettings, model: ModelSettings) -> tuple[list[dict], dict[str, dict]]:
    """Return a record for every sample that is missing, and for each task what its `meta.json` holds."""
    shared: dict[str, Any] = {"model": model.model, "revision": model.revision, "files": model_digest(model.model)}
    shared |= {"format": OURS, "endpoint": bool(model.endpoint)} | {
        name: getattr(settings, name) for name in (*PROTOCOL, "base_seed")
    }
    missing, by_task = [], {}
    tasks = task_files(settings.bench, settings.tasks)
    there = {task: path for task, path in find_samples(settings.output).items() if path.stat().st_size}
    made_by = {task: settings_of(path, task) for task, path in there.items()}
    others = {task: given for task, given in made_by.items() if task not in tasks}
    check_alike(settings.output, others | dict.fromkeys(tasks, shared))
    for task, path in tasks.items():
        samples = settings.count(task)
        wanted = wanted_samples(task, read_problem_rows(path), settings.prompt, samples, settings.base_seed)
        problems = digest([text for record in wanted[::samples] for text in (record["prompt"], record["answer"])])
        by_task[task] = shared | {"task": task, "problems": problems, "samples": samples}
        by_task[task]["problem_count"] = len(wanted) // samples
        missing += without_done(wanted, settings.output / f"{task}{ENDING}", by_task[task])
    return missing, by_task
