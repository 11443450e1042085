"""A task's statistics, from its grades: what `scores.json` holds of it."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from common.json_lines import format_line
from eval import judge
from eval.grading import OFFICIAL, TYPED, Grade
from eval.statistics import distinct_n, interval, majority, pass_at_k, powers_of_two

FAILURES = ("error", "timed_out", "crashed", "refused", "unusable_truth", "unparsable")  # apart from incorrect ones
PERCENTILES = (10, 50, 90, 99)
DISTINCT_VERSION = "2"  # raise it whenever distinct-4 may change: caches go by it
BINS = 30  # of the histograms of lengths


def by_problem(grades: Iterable[Grade], path: Path) -> dict[str, list[Grade]]:
    """Map problem ids to their samples; ValueError if some have more than others: the mean would favour them."""
    problems: dict[str, list[Grade]] = {}
    for grade in grades:
        problems.setdefault(grade.problem_id, []).append(grade)
    counts = {len(samples) for samples in problems.values()}
    if len(counts) != 1:
        fewest = min(problems, key=lambda problem: len(problems[problem]))
        raise ValueError(
            f"{path}: problems have between {min(counts)} and {max(counts)} samples, the fewest has {fewest}; "
            "run eval.generate again"
        )
    return problems


def score_track(problems: dict[str, list[Grade]], track: str) -> dict:
    correct = {problem: [grade.is_correct(track) for grade in grades] for problem, grades in problems.items()}
    samples = len(next(iter(correct.values())))
    fractions = {problem: sum(values) / samples for problem, values in correct.items()}
    table = np.array(list(fractions.values()))
    votes = [majority([grade.vote for grade in grades], correct[problem]) for problem, grades in problems.items()]
    attempts = {
        str(k): float(np.mean([pass_at_k(samples, sum(values), k) for values in correct.values()]))
        for k in powers_of_two(samples)
    }
    return {
        "avg": float(table.mean()),
        "ci95": interval(table),
        "pass": attempts,
        "maj": float(np.mean(votes)),
        "per_problem": fractions,
    }


def lengths(grades: list[Grade]) -> dict | None:
    """Return the mean and percentiles of response lengths (tokens), and histograms of correct and incorrect ones."""
    stated = [grade for grade in grades if grade.tokens is not None]  # by the release of none, by a server perhaps
    if not stated:
        return None
    tokens, correct = np.array([(grade.tokens, grade.is_correct(OFFICIAL)) for grade in stated]).T
    edges = np.histogram_bin_edges(tokens, BINS)
    percentiles = zip(PERCENTILES, np.percentile(tokens, PERCENTILES).tolist(), strict=True)
    return {
        "mean": float(tokens.mean()),
        **{f"p{p}": value for p, value in percentiles},
        "right": np.histogram(tokens[correct == 1], edges)[0].tolist(),
        "wrong": np.histogram(tokens[correct == 0], edges)[0].tolist(),
        "edges": edges.tolist(),
    }


def count_verdicts(grades: list[Grade]) -> dict | None:
    """Count the judge's verdicts on rejected samples, and the accepted ones that it disputes; None without any."""
    asked = [grade for grade in grades if grade.verdict]
    audit = [grade.verdict for grade in asked if grade.is_correct(OFFICIAL)]
    given = Counter(grade.verdict for grade in asked if not grade.is_correct(OFFICIAL))
    counts = {name: given[name] for name in judge.VERDICTS}
    disputed = sum(verdict in ("B", "C") for verdict in audit)
    return {"graded": given.total(), **counts, "audited": len(audit), "disputed": disputed} if asked else None


def score_task(grades: list[Grade], path: Path, tracks: Iterable[str], distinct_4: float | None) -> dict:
    problems = by_problem(grades, path)
    by_track = {track: score_track(problems, track) for track in tracks}
    reasons = {track: Counter(grade.outcomes[track] for grade in grades) for track in (OFFICIAL, TYPED)}
    for track, counted in reasons.items():
        by_track[track]["errors"] = sum(counted[name] for name in FAILURES)
    ended = [grade.finish_reason for grade in grades if grade.finish_reason]
    return {
        "problems": len(problems),
        "samples": len(grades) // len(problems),
        "avg": by_track[OFFICIAL]["avg"],
        "ci95": by_track[OFFICIAL]["ci95"],
        "tracks": by_track,
        "no_box": reasons[OFFICIAL]["no_box"] / len(grades),
        "cut_off": ended.count("length") / len(ended) if ended else None,
        "distinct_4": distinct_4,
        "tokens": lengths(grades),
        "reasons": {track: dict(counted.most_common()) for track, counted in reasons.items()},
        "judged": count_verdicts(grades),
    }


def mean_distinct_4(records: list[dict]) -> float | None:
    texts: dict[str, list[str]] = {}
    for record in records:
        texts.setdefault(record["problem_id"], []).append(record["response"])
    found = [value for responses in texts.values() if (value := distinct_n(responses)) is not None]
    return float(np.mean(found)) if found else None


def grade_lines(grades: Iterable[Grade]) -> str:
    """Format the lines of `<task>.grades.jsonl`."""
    lines = []
    for grade in grades:
        record = {"task": grade.task, "problem_id": grade.problem_id, "sample": grade.sample}
        record |= {"rule": int(grade.is_correct(OFFICIAL)), "reason": grade.outcomes[OFFICIAL]}
        record |= {"typed": int(grade.is_correct(TYPED)), "typed_reason": grade.outcomes[TYPED]}
        lines.append(format_line(record | {"judge": grade.verdict, "answer": grade.answer}))
    return "".join(lines)
