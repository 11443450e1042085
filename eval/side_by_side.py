"""Responses of two models to the same problems side by side, as one HTML page."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markupsafe import Markup
from tqdm import tqdm

from common.files import write_text
from common.json_lines import name_lines, read_lines
from eval.results import Results
from eval.samples import JUDGED, OFFICIAL, SHAPES, TYPED, find_samples, read_samples
from eval.tables import TEMPLATES

PAGE_BYTES = 1_800_000  # of all problems shown: with its head the page stays under 2 MB
CHARACTERS = 4000  # of a text: what is longer loses its middle


def first_samples(folder: Path, task: str) -> dict[str, dict]:
    """Map a task's problems to their first sample, with its line of the grades as `grade`; {} without both files.

    Raises:
        ValueError: a line of the grades is damaged.
    """
    path, graded = find_samples(folder).get(task), folder / f"{task}.grades.jsonl"
    if path is None or not graded.exists():
        return {}
    lines, bad = read_lines(graded, SHAPES["grade"])
    if bad:
        raise ValueError(f"{name_lines(graded, bad)}; grade again: python -m eval.grade {folder}")
    grades = {line["problem_id"]: line for line in lines if line["sample"] == 0}
    first = {sample["problem_id"]: sample for sample in read_samples(path, task) if sample["sample"] == 0}
    return {problem: sample | {"grade": grades[problem]} for problem, sample in first.items() if problem in grades}


def by_track(grade: dict, tracks: Iterable[str]) -> dict[str, tuple[bool, str]]:
    """Map tracks to whether a sample is correct, and why."""
    verdict = grade.get("judge")
    known = {
        OFFICIAL: (bool(grade["rule"]), grade["reason"]),
        JUDGED: (verdict == "A", f"judge: {verdict}" if verdict else grade["reason"]),
    }
    if grade["rule"] == 1:
        known[JUDGED] = known[OFFICIAL]  # whatever an audit found
    if "typed" in grade:  # grades of older versions lack it
        known[TYPED] = bool(grade["typed"]), grade.get("typed_reason", "")
    return {track: known[track] for track in tracks if track in known}


def shortened(text: str | None) -> tuple[str, int, str]:
    """Return a text's beginning, how many characters are left out, and its end."""
    text = (text or "").encode(errors="replace").decode()  # a model may write half a character
    gone = max(0, len(text) - CHARACTERS)
    return (text[: CHARACTERS // 2], gone, text[-CHARACTERS // 2 :]) if gone else (text, 0, "")


def make_pair(results: Results, task: str, samples: list[dict]) -> dict[str, Any]:
    """Return what the page shows of a problem, given a sample of the first and one of the last model."""
    sides = []
    for model, sample in zip((results.first, results.models[-1]), samples, strict=True):
        grades = by_track(sample["grade"], results.tasks[task][model]["tracks"])
        sides.append(sample | {"model": model, "grades": grades, "response": shortened(sample["response"])})
    correct = [side["grades"][results.track][0] for side in sides]
    outcome = "neither" if not any(correct) else "both" if all(correct) else "first" if correct[0] else "second"
    prompt, answer = (shortened(samples[0][name]) for name in ("prompt", "answer"))
    shown = {"task": task, "problem": samples[0]["problem_id"], "prompt": prompt, "answer": answer}
    return shown | {"sides": sides, "outcome": outcome}


def pairs(results: Results, found: dict[str, Path]) -> list[tuple[int, dict]]:
    """List pairs beside their rank within their benchmark, where problems on which the two models differ come first."""
    ranked = []
    for task in tqdm(results.tasks, desc="reading samples", delay=2, leave=False, disable=None):
        first, last = (first_samples(found[model], task) for model in (results.first, results.models[-1]))
        made = [make_pair(results, task, [first[problem], last[problem]]) for problem in first if problem in last]
        made.sort(key=lambda pair: pair["outcome"] not in ("first", "second"))
        ranked += list(enumerate(made))
    return ranked


def write_pairs(results: Results | None, found: dict[str, Path], path: Path) -> bool:
    """Write the page of the first and the last model; return whether there is anything to write, else remove it.

    Every benchmark has as many problems as fit: first the first ones of each, then the second ones, and so on.

    Args:
        found: model to its folder of samples and grades.
    """
    ranked = pairs(results, found) if results and len(results.models) > 1 else []
    if not results or not ranked:
        path.unlink(missing_ok=True)  # of an earlier report
        return False
    template, size = TEMPLATES.get_template("sample.html.j2"), 0
    shown: dict[str, list[Markup]] = {task: [] for task in results.tasks}
    for _, pair in sorted(ranked, key=lambda ranked_pair: ranked_pair[0]):
        text = template.render(**pair, track=results.track)
        size += len(text.encode())
        if size > PAGE_BYTES:
            break
        shown[pair["task"]].append(Markup(text))
    context = {
        "title": f"{results.first} and {results.models[-1]} side by side",
        "shown": {task: texts for task, texts in shown.items() if texts},
        "models": (results.first, results.models[-1]),
        "track": results.track,
        "counts": (sum(map(len, shown.values())), len(ranked)),
        "tasks": dict.fromkeys(pair["task"] for _, pair in ranked),
    }
    links = {"report.html": "Report"} | {f"#{task}": task for task in context["shown"]}
    write_text(path, TEMPLATES.get_template("samples.html.j2").render(**context, links=links))
    return True
