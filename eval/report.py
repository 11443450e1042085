"""A run's report: python -m eval.report outputs/demo

Reads the run's `metrics.jsonl` and its evaluations under `eval/`, writes `report.md`, `report.html`
(one file, with its figure inside) and `curves.png`.
"""

import argparse
import base64
import html
import json
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from data_prep.command import run as run_command
from data_prep.files import write_text_whole
from eval.compute import compute_table
from eval.figures import draw_curves
from eval.generate import read_samples
from eval.statistics import paired_difference
from recipe.curves import has_bands
from recipe.health import warnings
from recipe.progress import REWARD, has_training, number
from recipe.resume import read_metrics

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; }
td + td, th + th { text-align: right; } img { width: 100%; }
pre { background: #f5f5f5; padding: .8rem; overflow: auto; }
"""


def evaluations(run: Path) -> dict[str, dict]:
    """Return checkpoint name ("base", "step_30") to scores, the base first, then by step."""
    paths = [run / "eval" / "base" / "scores.json", *run.glob("eval/step_*/scores.json")]
    steps = {path: int(path.parent.name.removeprefix("step_").replace("base", "-1")) for path in paths if path.exists()}
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(steps, key=steps.get)}


def interval_text(mean: float, interval: list[float] | tuple[float, float], signed: bool = False) -> str:
    """Return "41.2 [38.0, 44.5]" from fractions."""
    low, high = interval
    return f"{100 * mean:{'+' if signed else ''}.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def score_table(scores: dict[str, dict]) -> list[list[str]]:
    """Return rows, the header first: a row per task, a column per checkpoint, last minus first, paired by problem."""
    names = list(scores)
    first, last = scores[names[0]]["tasks"], scores[names[-1]]["tasks"]
    rows = []
    for task in (task for task in first if all(task in s["tasks"] for s in scores.values())):
        cells = [f"{task} (avg@{first[task]['samples']}, {first[task]['problems']} problems)"]
        cells += [interval_text(scores[n]["tasks"][task]["avg"], scores[n]["tasks"][task]["ci95"]) for n in names]
        if len(names) > 1:
            problems = first[task]["per_problem"]
            before = np.array(list(problems.values()))
            after = np.array([last[task]["per_problem"][problem] for problem in problems])
            cells.append(interval_text(*paired_difference(before, after), signed=True))
        rows.append(cells)
    return [["benchmark", *names, *(["difference"] if len(names) > 1 else [])], *rows]


def example_responses(run: Path, count: int = 3) -> list[str]:
    """Return graded samples of some problems of the last evaluation as text, right ones first."""
    folders = [run / "eval" / name for name in evaluations(run)]
    shown = []
    for path in sorted(folders[-1].glob("*.samples.jsonl"))[:1]:
        samples = read_samples(path)
        grades = read_samples(path.with_name(path.name.replace("samples", "grades")))
        firsts = [pair for pair in zip(samples, grades, strict=True) if pair[0]["sample"] == 0]
        pairs = sorted(firsts, key=lambda pair: -pair[1]["rule"])
        for sample, grade in pairs[:count]:
            problem = sample["prompt"].split("\n")[0]
            text = f"{problem}\n{sample['response'][-300:]}\n({grade['reason']}, answer {sample['answer']})"
            shown.append("\n".join(f"    {line}" for line in text.splitlines()))
    return shown


def verdict(scores: dict[str, dict]) -> str:
    """Return one honest sentence about what the evaluations show."""
    names = list(scores)
    if len(names) < 2:
        return "Only one evaluation is there, so nothing is compared."
    if all(task["avg"] == 0 for s in scores.values() for task in s["tasks"].values()):
        return "Neither model solves a single problem: the score is zero before and after training."
    before, after = scores[names[0]]["mean"], scores[names[-1]]["mean"]
    return f"The mean score goes from {100 * before:.1f} ({names[0]}) to {100 * after:.1f} ({names[-1]}) percent."


def markdown_table(rows: list[list[str]]) -> str:
    """Return rows, the first of them the header, as a Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def markdown(run: Path, by_step: dict[int, dict], config: DictConfig | None, scores: dict[str, dict]) -> str:
    """Return the report as Markdown; `config` is None for a folder without training."""
    parts = [f"# {run.name}\n"]
    trained = [m for m in by_step.values() if has_training(m)]
    if scores:
        track = next(iter(scores.values()))["track"]
        parts.append(f"{verdict(scores)}\n")
        parts.append(markdown_table(score_table(scores)))
        parts.append(f"\nPercent, with 95 % bootstrap intervals over problems; graded by {track}.\n")
    if trained:
        seconds = sum(m["timing_s/step"] for m in trained)
        parts.append(
            f"{len(trained)} steps of training in {seconds:.0f} s; reward {number(trained[0], REWARD)} at the first "
            f"and {number(trained[-1], REWARD)} at the last.\n"
        )
        parts.append("![curves](curves.png)\n")
        if has_bands(config):
            parts.append(
                "Shaded: the paper's bands. Dashed: its AIME24 in training, read off its figure 1 by eye, graded with "
                "math-verify on up to 31,744 tokens.\n"
            )
        if found := warnings(by_step, config):
            parts.append("Warnings:\n\n" + "\n".join(f"- {line}" for line in found) + "\n")
        rows, note = compute_table(by_step, config)
        parts.append(f"{markdown_table(rows)}\n\n{note}\n")
    if scores and (shown := example_responses(run)):
        parts.append("Responses of the last model:\n\n" + "\n\n".join(shown) + "\n")
    return "\n".join(parts)


def as_html(run: Path, text: str, figure: Path) -> str:
    """Return the Markdown report as one HTML page, its figure inside."""
    import markdown_it

    body = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    if figure.exists():
        picture = base64.b64encode(figure.read_bytes()).decode()
        body = body.replace('src="curves.png"', f'src="data:image/png;base64,{picture}"')
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    title = html.escape(run.name)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">{viewport}<title>{title}</title>'
        f"<style>{STYLE}</style><body>{body}</body></html>\n"
    )


def write(run: Path) -> None:
    """Write a run's report.

    Raises:
        ValueError: the folder holds neither metrics nor evaluations.
    """
    by_step, scores = read_metrics(run / "metrics.jsonl"), evaluations(run)
    if not by_step and not scores:
        raise ValueError(f"{run}: holds no metrics.jsonl and no eval/*/scores.json; is it a run's folder?")
    figure = run / "curves.png"
    config = None
    if any(has_training(m) for m in by_step.values()):
        config = OmegaConf.load(run / "config.yaml")
        draw_curves(by_step, config, figure)
    text = markdown(run, by_step, config, scores)
    write_text_whole(run / "report.md", text)
    write_text_whole(run / "report.html", as_html(run, text, figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run, outputs/<experiment>")
    args = parser.parse_args()
    for run in args.runs:
        write(run)
        print(f"  {run}/report.md and report.html")


if __name__ == "__main__":
    run_command(main)
