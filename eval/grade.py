"""Grade sampled responses on two tracks: python -m eval.grade DIR [--judge MODEL]

Reads every `<task>.samples.jsonl` in DIR, or the files that the official release publishes, and writes
`<task>.grades.jsonl` and `scores.json`. The tracks are never mixed:

  official        as the released grader's rule (eval/official.py); scores of this track compare with the paper
  official+judge  the same, or the judge says A; only with --judge, and what the paper's table is
  strict-typed    what the gold means decides (eval/typed.py)

What was graded or judged once is looked up in `grades.cache.jsonl` and `judgements.jsonl`.

example: python -m eval.grade outputs/demo/eval/base
"""

import argparse
import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.command import run as run_command
from common.command import within
from common.files import sha256, write_text
from common.models import check_model
from data_prep.benchmarks import BENCHMARKS
from data_prep.reference_answers import corrected, corrections
from eval import judge, official, typed
from eval.generate import add_engine_arguments, one_driver
from eval.samples import ENDING, format_line, read_json, read_lines, read_samples, sample_files
from eval.statistics import distinct_n, interval, majority, mean_interval, pass_at_k, powers_of_two
from reward.justrl import last_boxed
from reward.sandbox import WORKERS

TRACK = "official"  # whose average is a model's score
JUDGED, TYPED = "official+judge", "strict-typed"
FAILURES = ("error", "timed_out", "crashed", "refused", "unusable_truth", "unparsable")  # counted apart from wrong
PROTOCOL = ("prompt", "temperature", "top_p", "max_tokens")  # beside the number of samples
PERCENTILES = (10, 50, 90, 99)
BINS = 30  # of the histograms of lengths


class Cache:
    """Outcomes by what they depend on, in a file of JSON lines that outlives a kill."""

    def __init__(self, path: Path):
        self.path = path
        self.known = {line["key"]: line["value"] for line in (read_lines(path)[0] if path.exists() else [])}

    @staticmethod
    def key(*parts: str) -> str:
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def fill(self, wanted: dict[str, tuple], compute, what: str) -> None:
        """Compute what is not known, in threads: the comparisons run in worker processes.

        Args:
            wanted: key to arguments of `compute`.
        """
        missing = {key: arguments for key, arguments in wanted.items() if key not in self.known}
        with open(self.path, "a") as file, ThreadPoolExecutor(WORKERS) as threads:
            found = threads.map(lambda arguments: compute(*arguments), missing.values())
            bar = tqdm(missing, desc=what, unit=" answers", delay=2, leave=False, disable=None)
            for key, value in zip(bar, found, strict=True):
                self.known[key] = value
                if value != "crashed":  # by what else ran on the machine, perhaps
                    file.write(format_line({"key": key, "value": value}))


def versions(*names: str) -> str:
    """Return what decides outcomes beside our own code."""
    return " ".join(importlib.metadata.version(name) for name in names)


def grade(records: list[dict], task: str, cache: Cache) -> list[dict]:
    """Return each sample's outcome on both tracks and what later stages need of it, without its response.

    Raises:
        ValueError: a correction was written for another gold.
    """
    overlay, readings, wanted, made = corrections(), {}, {}, []
    versioned = {
        TRACK: f"{official.VERSION} {versions('sympy', 'pylatexenc')}",
        TYPED: f"{typed.VERSION} {versions('sympy', 'math-verify')}",
    }
    for record in records:
        response, gold, problem = record["response"], record["answer"], record["problem_id"]
        if (problem, gold) not in readings:
            readings[problem, gold] = corrected(gold, task, overlay.get(problem))
        truth, reading = readings[problem, gold]
        answers = {TRACK: official.boxed(response), TYPED: last_boxed(response)}
        keys = {}
        for track, compute, arguments in ((TRACK, official.judge, (gold,)), (TYPED, typed.judge, (truth, reading))):
            if answers[track] is None:
                continue
            keys[track] = cache.key(track, versioned[track], answers[track], *map(str, arguments))
            wanted[keys[track]] = (compute, rf"\boxed{{{answers[track]}}}", *arguments)
        kept = {name: record.get(name) for name in ("task", "problem_id", "sample", "tokens", "finish_reason")}
        shown = judge.final_part(response, answers[TYPED] or "")
        kept |= {"question": judge.Question(record["prompt"] or "", gold, shown), "keys": keys}
        kept["answer"] = None if answers[TRACK] is None else answers[TRACK][: official.MAX_CHARACTERS]
        kept["vote"] = None if answers[TRACK] is None else official.normal(kept["answer"])
        made.append(kept)
    cache.fill(wanted, lambda compute, *arguments: compute(*arguments)[0], task)
    for kept in made:
        keys = kept.pop("keys")
        kept["outcomes"] = {t: cache.known[keys[t]] if t in keys else "no_box" for t in (TRACK, TYPED)}
        kept["right"] = {
            TRACK: kept["outcomes"][TRACK] in official.RIGHT,
            TYPED: kept["outcomes"][TYPED] in typed.RIGHT,
        }
    return made


def add_verdicts(graded: dict[str, list[dict]], args: argparse.Namespace) -> None:
    """Ask the judge about what the rule rejected and a share of what it accepted; add `verdict` and its track."""
    every = [kept for task in graded.values() for kept in task]
    for kept in every:
        kept["accepted"] = kept["right"][TRACK]
        kept["asked"] = not kept["accepted"] or judge.audited(
            args.audit, kept["task"], kept["problem_id"], kept["sample"]
        )
    verdicts = judge.ask((kept["question"] for kept in every if kept["asked"]), args.folder, args)
    for kept in every:
        kept["verdict"] = verdicts[kept["question"]] if kept["asked"] else None
        kept["right"][JUDGED] = kept["accepted"] or kept["verdict"] == "A"


def judged(graded: list[dict]) -> dict | None:
    """Return what the judge said of a task's samples, and how many accepted ones it disputes; None without a judge."""
    asked = [kept for kept in graded if kept.get("asked")]
    if not asked:
        return None
    audit = [kept["verdict"] for kept in asked if kept["accepted"]]
    said = Counter(kept["verdict"] for kept in asked if not kept["accepted"])
    counts = {name: said[name] for name in judge.VERDICTS}
    return {"graded": said.total(), **counts, "audited": len(audit), "disputed": sum(v in ("B", "C") for v in audit)}


def by_problem(graded: list[dict], path: Path) -> dict[str, list[dict]]:
    """Return problem id to its samples.

    Raises:
        ValueError: some problems have more samples than others; the mean would favour them.
    """
    problems: dict[str, list[dict]] = {}
    for kept in graded:
        problems.setdefault(kept["problem_id"], []).append(kept)
    counts = {len(samples) for samples in problems.values()}
    if len(counts) != 1:
        fewest = min(problems, key=lambda problem: len(problems[problem]))
        raise ValueError(
            f"{path}: problems have between {min(counts)} and {max(counts)} samples, the fewest has {fewest}; "
            "run eval.generate again"
        )
    return problems


def track_scores(problems: dict[str, list[dict]], track: str) -> dict:
    """Return a track's statistics of one task."""
    counts = {problem: sum(kept["right"][track] for kept in samples) for problem, samples in problems.items()}
    each = len(next(iter(problems.values())))
    shares = np.array([count / each for count in counts.values()])
    votes = [
        majority([kept["vote"] for kept in samples], [kept["right"][track] for kept in samples])
        for samples in problems.values()
    ]
    return {
        "avg": float(shares.mean()),
        "ci95": interval(shares),
        "pass": {
            str(k): float(np.mean([pass_at_k(each, count, k) for count in counts.values()]))
            for k in powers_of_two(each)
        },
        "maj": float(np.mean(votes)),
        "per_problem": {problem: count / each for problem, count in counts.items()},
    }


def lengths(graded: list[dict]) -> dict | None:
    """Return the mean and percentiles of response lengths (tokens), and histograms of right and wrong ones."""
    tokens = np.array([kept["tokens"] or 0 for kept in graded])
    if not tokens.any():
        return None  # the release does not say
    right = np.array([kept["right"][TRACK] for kept in graded])
    edges = np.histogram_bin_edges(tokens, BINS)
    counts = {
        name: np.histogram(tokens[chosen], edges)[0].tolist() for name, chosen in (("right", right), ("wrong", ~right))
    }
    percentiles = {
        f"p{p}": float(value) for p, value in zip(PERCENTILES, np.percentile(tokens, PERCENTILES), strict=True)
    }
    return {"mean": float(tokens.mean()), **percentiles, **counts, "edges": edges.tolist()}


def score(graded: list[dict], path: Path, distinct_4: float) -> dict:
    """Return a task's statistics; raises what `by_problem` raises."""
    problems = by_problem(graded, path)
    tracks = {track: track_scores(problems, track) for track in graded[0]["right"]}
    outcomes = {track: Counter(kept["outcomes"][track] for kept in graded) for track in (TRACK, TYPED)}
    for track, counted in outcomes.items():
        tracks[track]["errors"] = sum(counted[name] for name in FAILURES)
    ended = [kept["finish_reason"] for kept in graded if kept["finish_reason"]]
    return {
        "problems": len(problems),
        "samples": len(graded) // len(problems),
        "avg": tracks[TRACK]["avg"],
        "ci95": tracks[TRACK]["ci95"],
        "tracks": tracks,
        "no_box": outcomes[TRACK]["no_box"] / len(graded),
        "cut_off": ended.count("length") / len(ended) if ended else None,
        "distinct_4": distinct_4,
        "tokens": lengths(graded),
        "reasons": {track: dict(counted.most_common()) for track, counted in outcomes.items()},
        "judged": judged(graded),
    }


def diversity(records: list[dict]) -> float:
    """Return the mean over problems of distinct-4."""
    texts: dict[str, list[str]] = {}
    for record in records:
        texts.setdefault(record["problem_id"], []).append(record["response"])
    return float(np.mean([distinct_n(responses) for responses in texts.values()]))


def grade_lines(graded: Iterable[dict]) -> str:
    """Return the lines of `<task>.grades.jsonl`."""
    lines = []
    for kept in graded:
        keys = {name: kept[name] for name in ("task", "problem_id", "sample")}
        keys |= {"rule": int(kept["right"][TRACK]), "reason": kept["outcomes"][TRACK]}
        keys |= {"typed": int(kept["right"][TYPED]), "typed_reason": kept["outcomes"][TYPED]}
        lines.append(format_line(keys | {"judge": kept.get("verdict"), "answer": kept["answer"]}))
    return "".join(lines)


def settings_of(path: Path, task: str) -> dict:
    """Return what made a samples file: of ours its settings, of the release's its folder's name for the model."""
    if path.name.endswith(ENDING):
        return read_json(path.with_name(f"{task}.meta.json"), "model", "problem_count", *PROTOCOL)
    count = {"problem_count": BENCHMARKS[task].problems} if task in BENCHMARKS else {}
    return {"model": path.resolve().parent.name, **count}


def run(args: argparse.Namespace) -> dict:
    """Grade every task of a folder and return its scores."""
    folder = args.folder
    files = sample_files(folder)
    if args.model and not args.endpoint:
        check_model(args.model)
    settings = {task: settings_of(path, task) for task, path in files.items()}
    cache = Cache(folder / "grades.cache.jsonl")
    graded, distinct = {}, {}
    for task, path in files.items():
        records = read_samples(path, task)
        if not records:
            raise ValueError(f"{path}: holds no samples; run eval.generate again")
        asked, there = settings[task].get("problem_count"), len({record["problem_id"] for record in records})
        if asked not in (None, there):
            raise ValueError(f"{path}: has samples of {there} problems of {asked}; run eval.generate again")
        graded[task] = grade(records, task, cache)
        by_problem(graded[task], path)
        key = cache.key("distinct_4", sha256(path))
        cache.fill({key: (records,)}, diversity, f"{task}, distinct-4")
        distinct[task] = cache.known[key]
    if args.model:
        add_verdicts(graded, args)
    tasks = {}
    for task, path in files.items():
        write_text(folder / f"{task}.grades.jsonl", grade_lines(graded[task]))
        tasks[task] = score(graded[task], path, distinct[task])
    means = {}
    for track in next(iter(tasks.values()))["tracks"]:
        tables = [np.array(list(values["tracks"][track]["per_problem"].values())) for values in tasks.values()]
        mean, bounds = mean_interval(tables)
        means[track] = {"avg": mean, "ci95": bounds}
    scores = {
        "model": next(iter(settings.values()))["model"],
        "protocol": {task: {name: values.get(name) for name in PROTOCOL} for task, values in settings.items()},
        "track": TRACK,
        "mean": means[TRACK]["avg"],
        "ci95": means[TRACK]["ci95"],
        "means": means,
        "judge": {"model": args.model, "audit": args.audit} if args.model else None,
        "tasks": tasks,
    }
    write_text(folder / "scores.json", json.dumps(scores, indent=2) + "\n")
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with samples")
    parser.add_argument(
        "--judge", dest="model", nargs="?", const=judge.DEFAULT, metavar="MODEL", help=f"default {judge.DEFAULT}"
    )
    parser.add_argument(
        "--audit", type=within(0, 1), default=0.05, help="share of accepted samples it sees (%(default)s)"
    )
    add_engine_arguments(parser)
    args = parser.parse_args()
    sample_files(args.folder)
    with one_driver(args.folder):
        scores = run(args)
    for task, values in scores["tasks"].items():
        low, high = values["ci95"]
        others = [f"{t} {100 * s['avg']:.1f}" for t, s in values["tracks"].items() if t != TRACK]
        print(
            f"  {task}: avg@{values['samples']} {100 * values['avg']:.1f} [{100 * low:.1f}, {100 * high:.1f}]; "
            + ", ".join(others)
        )


if __name__ == "__main__":
    run_command(main)
