"""What evaluations show: python -m eval.report FOLDER [FOLDER ...] [--output DIR]

A FOLDER is a run's (outputs/<experiment>, with `metrics.jsonl` or evaluations under `eval/`) or one that eval.grade
filled (with `scores.json`). Writes `report.md`, `report.html` (one file, its figures inside), `report.json` (every
number) and the figures, into the one FOLDER or into --output. Of several folders the first is compared with each
other one over the same problems; of a run among them its last evaluation counts.

examples:
  python -m eval.report outputs/demo
  python -m eval.report outputs/eval/JustRL-DeepSeek-1.5B outputs/mine --output outputs/compared
"""

import argparse
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import NormalDist

import numpy as np
from omegaconf import DictConfig, OmegaConf

from common.command import run as run_command
from eval.figures import draw_curves, draw_lengths, draw_pass_at_k, draw_scores
from eval.page import Cell, Report, number, percent
from eval.published import PUBLISHED, beside_published, published
from eval.samples import ENDING, read_json, read_lines, read_samples
from eval.statistics import mean_interval, paired_mean_difference
from recipe import attention
from recipe.monitor.compute import compute, compute_table
from recipe.monitor.curves import BUDGETS, has_bands
from recipe.monitor.health import series, warnings
from recipe.monitor.metrics import REWARD, has_training, read_metrics
from recipe.monitor.metrics import format_metric as metric

MANIFEST = Path("data/dapo/train.manifest.json")
SIGNIFICANT = 0.05
FOUND = 0.8  # how often a difference is found that the report calls large enough
PROTOCOL = {"prompt": "evaluation", "temperature": 0.7, "top_p": 0.9, "max_tokens": 31744}  # the release's
LENGTHS = ("mean", "p10", "p50", "p90", "p99")
Results = dict[str, dict[str, dict]]  # benchmark to model to its part of scores.json


def load(folder: Path) -> dict:
    """Return the scores of an evaluation.

    Raises:
        ValueError: they are not as eval.grade writes them now.
    """
    scores = read_json(folder / "scores.json", "model", "track", "tasks")
    if not all("tracks" in result for result in scores["tasks"].values()):
        raise ValueError(f"{folder}/scores.json: not as eval.grade writes it today; grade again")
    return scores


def checkpoints(run: Path) -> list[Path]:
    """Return the folders of a run's graded evaluations, the base first, then by step."""
    steps = sorted(run.glob("eval/step_*/scores.json"), key=lambda path: int(path.parent.name.removeprefix("step_")))
    return [path.parent for path in (run / "eval" / "base" / "scores.json", *steps) if path.exists()]


def find(folders: list[Path]) -> dict[str, Path]:
    """Return model to evaluation folder; of a run all of them, or the last where there are other folders.

    Raises:
        ValueError: a folder is no run's and no evaluation's.
    """
    named: dict[str, Path] = {}
    for folder in folders:
        inside = checkpoints(folder)
        if (folder / "scores.json").exists():
            name = Path(load(folder)["model"] or folder.name).name
            named[str(folder) if name in named else name] = folder
        elif len(folders) == 1 and (inside or (folder / "metrics.jsonl").exists()):
            named = {path.name: path for path in inside}
        elif inside:
            named[f"{folder.name} {inside[-1].name}"] = inside[-1]
        else:
            raise ValueError(f"{folder}: holds no evaluation, and no metrics to report alone; is it a run's folder?")
    return named


def comparable(scores: dict[str, dict]) -> Results:
    """Return the results on the benchmarks that all models have, the problems in one order.

    Raises:
        ValueError: there are none, or the models were asked different problems, or graded on different tracks.
    """
    (first, model), *others = scores.items()
    tasks = [task for task in model["tasks"] if all(task in other["tasks"] for _, other in others)]
    if not tasks:
        raise ValueError(f"{listed(list(scores))} have no benchmark in common")
    results: Results = {task: {name: given["tasks"][task] for name, given in scores.items()} for task in tasks}
    for task, models in results.items():
        asked = models[first]["tracks"][model["track"]]["per_problem"]
        for name, result in models.items():
            if model["track"] not in result["tracks"]:
                raise ValueError(f"{task}: {name} was not graded on {model['track']}, as {first} was; grade both alike")
            for track in result["tracks"].values():
                if track["per_problem"].keys() != asked.keys():
                    raise ValueError(f"{task}: {first} and {name} were asked different problems; sample both alike")
                track["per_problem"] = {problem: track["per_problem"][problem] for problem in asked}
    return results


def shares(result: dict, track: str, without: Iterable[str] = ()) -> np.ndarray:
    """Return the share of right samples of each problem, some left out."""
    given = result["tracks"][track]["per_problem"]
    return np.array([share for problem, share in given.items() if problem not in without])


def groups(results: Results) -> dict[str, list[str]]:
    """Return a row's name to its benchmarks: each by itself, and, of several, "mean of 9"."""
    return {task: [task] for task in results} | ({f"mean of {len(results)}": list(results)} if len(results) > 1 else {})


def label(results: Results, row: str) -> str:
    """Return "AIME24 (avg@32, 30 problems)" of a benchmark, and of the mean its name alone."""
    models = list(results.get(row, {}).values())
    samples = " or ".join(map(str, sorted({result["samples"] for result in models})))
    return f"{row} (avg@{samples}, {models[0]['problems']} problems)" if models else row


def mean(
    results: Results, tasks: list[str], name: str, track: str, without: Iterable[str] = ()
) -> tuple[float, tuple[float, float]] | tuple[None]:
    """Return a model's mean over benchmarks and its interval; (None,) where it was not graded, or nothing is left."""
    there = [results[task][name] for task in tasks if track in results[task][name]["tracks"]]
    tables = [table for result in there if len(table := shares(result, track, without))]
    return mean_interval(tables) if tables and len(there) == len(tasks) else (None,)


def names(results: Results) -> list[str]:
    """Return the models in their order."""
    return list(next(iter(results.values())))


def by_model(results: Results, columns: Iterable[str], cells: Callable[[dict], list[Cell]]) -> list[list[Cell | str]]:
    """Return rows, the header first, with a row for each benchmark and model."""
    rows = ([task, name, *cells(result)] for task, models in results.items() for name, result in models.items())
    return [["benchmark", "model", *columns], *rows]


def listed(names: list[str]) -> str:
    """Return "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Return p-values corrected for there being several (Holm 1979)."""
    corrected, worst = {}, 0.0
    for i, name in enumerate(sorted(p_values, key=p_values.get)):
        worst = max(worst, min(1.0, (len(p_values) - i) * p_values[name]))
        corrected[name] = worst
    return corrected


def reach(bounds: tuple[float, float], tests: int) -> float:
    """Return the true difference that is found four times in five, from a 95 % interval; 1.0 if none is.

    Args:
        tests: how many the p-value is corrected for; Holm's first step divides by all of them.
    """
    quantile = NormalDist().inv_cdf
    error = (bounds[1] - bounds[0]) / 2 / quantile(0.975)
    return min(1.0, error * (quantile(1 - SIGNIFICANT / 2 / tests) + quantile(FOUND)))


def what_differs(other: str, found: dict[str, tuple], corrected: dict[str, float], shown: dict[str, float]) -> str:
    """Return in plain words what paired differences (mean, interval, p) can and cannot tell apart.

    Args:
        corrected: p-value of each.
        shown: the true difference that each would show.
    """
    sure = {name for name, p in corrected.items() if p < SIGNIFICANT}
    kinds = {
        f"{other} is better on": [name for name in found if name in sure and found[name][0] > 0],
        f"{other} is worse on": [name for name in found if name in sure and found[name][0] < 0],
        "The data cannot tell the two apart on": [name for name in found if name not in sure],
    }
    said = [f"{kind} {listed(names)}." for kind, names in kinds.items() if names]
    ordered = sorted(shown, key=shown.get)
    ends = [f"{100 * shown[name]:.1f} points ({name})" for name in dict.fromkeys((ordered[0], ordered[-1]))]
    said.append(f"To be found four times in five, a true difference must have {' to '.join(ends)}.")
    return " ".join(said).replace("mean of", "the mean of")


def add_scores(report: Report, results: Results, track: str, is_run: bool) -> None:
    """Add a verdict, and avg@N of every model."""
    models, rows = names(results), groups(results)
    scores = {row: {name: mean(results, tasks, name, track) for name in models} for row, tasks in rows.items()}
    means = [score for score, _ in scores[list(rows)[-1]].values()]
    if len(models) < 2:
        report.say("Only one evaluation is there, so nothing is compared.")
    elif not any(means):
        when = ": the score is zero before and after training" if is_run else ""
        report.say(f"{'Neither' if len(models) == 2 else 'No'} model solves a single problem{when}.")
    elif is_run:
        first, last = (f"{100 * means[i]:.1f} ({models[i]})" for i in (0, -1))
        report.say(f"The mean score goes from {first} to {last} percent.")
    cells = ([label(results, row), *(percent(*score) for score in given.values())] for row, given in scores.items())
    report.table("scores", [["benchmark", *models], *cells])
    report.say(f"Percent, with 95 % bootstrap intervals over problems; graded by {track}.")
    draw_scores(scores, report.picture("scores.png", "Scores with their intervals"))


def add_protocol(report: Report, scores: dict[str, dict]) -> None:
    """Add what of each model's sampling is not the released protocol, and who judged."""
    for name, given in scores.items():
        settings = {(key, value) for task in given.get("protocol", {}).values() for key, value in task.items()}
        differing = sorted(f"{key}={value}" for key, value in settings if value not in (None, PROTOCOL[key]))
        if differing:
            report.say(f"{name} was not sampled by the paper's protocol: {listed(differing)}.")
        if given.get("judge"):
            report.say(f"Judge of {name}: {given['judge']['model']}.")


def add_differences(report: Report, results: Results, track: str) -> None:
    """Add the first model against each other one, over the same problems."""
    first, *others = names(results)
    for other in others:
        pairs = {task: [shares(models[name], track) for name in (first, other)] for task, models in results.items()}
        found = {row: paired_mean_difference([pairs[t] for t in tasks]) for row, tasks in groups(results).items()}
        corrected = holm({task: found[task][2] for task in results})
        whole = {row: p for row, (_, _, p) in found.items() if row not in results}  # one test, nothing to correct
        shown = {row: reach(bounds, len(results) if row in results else 1) for row, (_, bounds, _) in found.items()}
        said = what_differs(other, found, corrected | whole, shown)
        report.say(f"## {other} against {first}, over the same problems", said)
        rows = [["benchmark", f"{other} minus {first}", "p", "p, Holm", "would show"]]
        for row, (difference, bounds, p) in found.items():
            tests = [number(p, ".2g"), number(corrected.get(row), ".2g"), number(100 * shown[row], ".1f")]
            rows.append([label(results, row), percent(difference, bounds, signed=True), *tests])
        report.table(f"{other} minus {first}", rows)
        report.say(
            "Percentage points with 95 % intervals. p: permutation test that flips the sign of problems' differences; "
            "Holm: corrected for the number of benchmarks. Would show: the true difference found so four times in five."
        )


def add_published(report: Report, scores: dict[str, dict], named: str | None) -> None:
    """Add the models that the paper has beside its figures; `named` is the row for the last model.

    Raises:
        ValueError: `named` is no row.
    """
    rows = {name: given["model"] or "" for name, given in scores.items()}
    rows |= {list(rows)[-1]: named} if named else {}
    if named and not published(named):
        raise ValueError(f"--published {named}: not in the paper's table, which has {', '.join(PUBLISHED['models'])}")
    for name, row in ((name, row) for name, row in rows.items() if published(row)):
        report.say(f"## {name} beside the published {Path(row).name}")
        table = beside_published(scores[name]["tasks"], published(row))
        if len(table) == 1:
            report.say("Nothing to compare: no benchmark is here whole and with the paper's number of samples.")
            continue
        report.table(f"{name} beside the published", table)
        report.say(
            f"{PUBLISHED['source']}. So official+judge is what compares, and the rule alone can only be lower. The "
            "problems are the same: the intervals are of sampling alone, ours and as much again for the paper's."
        )


def add_clean(report: Report, results: Results, track: str, asked: Path | None) -> None:
    """Add the scores without the problems that the training set's manifest lists.

    Raises:
        ValueError: a manifest that was asked for says nothing of these benchmarks.
    """
    path = asked or MANIFEST
    manifest = read_json(path, "settings") if asked or path.exists() else {}
    parts = manifest.get("contamination", {})
    results = {task: models for task, models in results.items() if task in parts}
    if not results:
        if asked:
            raise ValueError(f"{path}: has none of these benchmarks; prepare the training set with --benchmarks")
        return
    report.say("## Without the problems that are in the training set")
    copies = {problem for part in parts.values() for problem in part["problem_ids"]}
    if not copies or manifest["settings"]["decontaminate"] == "drop":
        report.say(f"By {path} no problem of a benchmark is left in the training set.")
        return
    rows = [["benchmark", "problems left out", *names(results)]]
    for row, tasks in groups(results).items():
        asked_of = [result for task in tasks for result in list(results[task].values())[:1]]
        gone = sum(len(shares(result, track)) - len(shares(result, track, copies)) for result in asked_of)
        clean = [percent(*mean(results, tasks, name, track, copies)) for name in names(results)]
        rows.append([label(results, row), number(gone), *clean])
    report.table("clean", rows)
    report.say(f"Percent on {track}; exact and near copies as listed by {path}. The rest is not proven clean.")


def add_tracks(report: Report, results: Results) -> None:
    """Add the scores by all graders side by side, and what could not be judged."""
    every = [result for models in results.values() for result in models.values()]
    tracks = list(dict.fromkeys(track for result in every for track in result["tracks"]))
    failing = [track for track in tracks if all("errors" in result["tracks"].get(track, ()) for result in every)]
    rows = [["benchmark", "model", *tracks, "errors"]]
    for row, tasks in groups(results).items():
        for name in names(results):
            errors = {track: sum(results[task][name]["tracks"][track]["errors"] for task in tasks) for track in failing}
            scores = [percent(*mean(results, tasks, name, track)) for track in tracks]
            rows.append([row, name, *scores, Cell(" + ".join(map(str, errors.values())), errors)])
    report.say("## By grader")
    report.table("tracks", rows)
    report.say(
        "official: the rule part of the released grader; official+judge: what it rejects goes to a judge, as for the "
        "paper's table; strict-typed: this project's, by the type of each gold. Errors: answers on "
        f"which {listed(failing)} failed, counted as wrong."
    )
    if judged := [result["judged"] for result in every if result["judged"]]:
        cells = by_model(results, judged[0], lambda r: [number((r["judged"] or {}).get(key)) for key in judged[0]])
        report.table("judge", cells)
        report.say(
            "The judge's verdicts. A: right, B: wrong, C: invalid. Audited: right by the rule; disputed: not so to it."
        )


def add_attempts(report: Report, results: Results, track: str) -> None:
    """Add pass@k and maj@N."""
    passes = {t: {name: r["tracks"][track]["pass"] for name, r in models.items()} for t, models in results.items()}
    ks = sorted({k for models in passes.values() for by_k in models.values() for k in by_k}, key=int)

    def cells(result: dict) -> list[Cell]:
        given = result["tracks"][track]
        return [*(percent(given["pass"].get(k)) for k in ks), percent(given["maj"])]

    report.say("## Several attempts")
    report.table("attempts", by_model(results, [*(f"pass@{k}" for k in ks), "maj@N"], cells))
    report.say(f"Percent on {track}. pass@k: the unbiased estimate; maj@N: the most frequent answer of all samples.")
    if len(ks) > 1:
        draw_pass_at_k(passes, report.picture("pass_at_k.png", "pass@k over k"))


def add_responses(report: Report, results: Results) -> None:
    """Add what the responses are like, whether right or wrong."""

    def cells(result: dict) -> list[Cell]:
        lengths = [number((result["tokens"] or {}).get(key)) for key in LENGTHS]
        return [percent(result["no_box"]), percent(result["cut_off"]), *lengths, number(result["distinct_4"], ".3f")]

    columns = ["no box", "cut off", *(f"tokens, {key}" for key in LENGTHS), "distinct-4"]
    report.say("## Responses")
    report.table("responses", by_model(results, columns, cells))
    report.say("No box, cut off: percent of responses. distinct-4: share of distinct 4-grams in a problem's responses.")
    shown = (names(results)[0], names(results)[-1])  # more would hide each other
    lengths = {t: {name: r["tokens"] if name in shown else None for name, r in m.items()} for t, m in results.items()}
    if lengths := {task: models for task, models in lengths.items() if any(models.values())}:
        draw_lengths(lengths, report.picture("lengths.png", "Lengths of right and of wrong responses"))
        report.say("Solid: right; dotted: wrong.")


def add_training(report: Report, run: Path, by_step: dict[int, dict], config: DictConfig) -> None:
    """Add a run's curves, warnings and compute."""
    trained = [metrics for metrics in by_step.values() if has_training(metrics)]
    report.say(
        f"## Training of {run.name}",
        f"{len(trained)} steps of training in {sum(m['timing_s/step'] for m in trained):.0f} s; reward "
        f"{metric(trained[0], REWARD)} at the first and {metric(trained[-1], REWARD)} at the last. "
        f"Attention: {attention.requested(config)}.",
    )
    name = "curves.png" if report.folder == run else f"curves_{run.name}.png"
    draw_curves(by_step, config, report.picture(name, "Training curves"))
    if has_bands(config):
        report.say(
            "Shaded: the paper's bands. Dashed: its AIME24 in training, read off its figure 1 by eye, graded with "
            "math-verify on up to 31,744 tokens."
        )
    if found := warnings(by_step, config):
        report.say("Warnings:", "\n".join(f"- {line}" for line in found))
    rows, note = compute_table(by_step, config)
    report.table(f"compute of {run.name}", rows)
    report.say(note)
    curves = {
        name: {step: None if math.isnan(value) else value for step, value in values.items()}
        for name, values in series(by_step, config).items()
    }
    report.numbers[f"training of {run.name}"] = compute(by_step, config) | {"curves": curves, "budgets": BUDGETS}


def add_examples(report: Report, folder: Path, count: int = 3) -> None:
    """Add graded samples of some problems of an evaluation, right ones first."""
    path = next(path for path in sorted(folder.glob(f"*{ENDING}")))
    grades = path.with_name(path.name.replace(ENDING, ".grades.jsonl"))
    pairs = zip(read_samples(path), read_lines(grades)[0], strict=False)
    pairs = sorted((pair for pair in pairs if pair[0]["sample"] == 0), key=lambda pair: -pair[1]["rule"])
    report.say("## Responses of the last model")
    for sample, grade in pairs[:count]:
        problem = (sample["prompt"] or "").split("\n")[0]
        response = sample["response"][-300:].encode(errors="replace").decode()  # half a character may be in it
        text = f"{problem}\n{response}\n({grade['reason']}, answer {sample['answer']})"
        report.say("\n".join(f"    {line}" for line in text.splitlines()))


def write(
    folders: list[Path], output: Path | None = None, manifest: Path | None = None, row: str | None = None
) -> Path:
    """Write a report and return its folder.

    Args:
        manifest: of the training set.
        row: of the published table, to put the last model beside.

    Raises:
        ValueError: a folder is no run's and no evaluation's, or what is there cannot be compared.
    """
    if output is None and len(folders) > 1:
        raise ValueError("a report on several folders needs --output DIR")
    found, alone = find(folders), folders[0] if len(folders) == 1 else None
    scores = {name: load(folder) for name, folder in found.items()}
    report = Report(alone.resolve().name if alone else listed(list(found)), output or alone)
    if scores:
        results, track = comparable(scores), next(iter(scores.values()))["track"]
        add_scores(report, results, track, is_run=bool(alone and checkpoints(alone)))
        add_protocol(report, scores)
        if left := {task for given in scores.values() for task in given["tasks"]} - results.keys():
            report.say(f"Left out, since not every model has them: {listed(sorted(left))}.")
        add_differences(report, results, track)
        add_published(report, scores, row)
        add_clean(report, results, track, manifest)
        add_tracks(report, results)
        add_attempts(report, results, track)
        add_responses(report, results)
        report.numbers["evaluations"] = scores
    for run in folders:
        by_step = read_metrics(run / "metrics.jsonl")
        if any(map(has_training, by_step.values())):
            add_training(report, run, by_step, OmegaConf.load(run / "config.yaml"))
    last = list(found.values())[-1:]
    if last and any(last[0].glob(f"*{ENDING}")):  # scores.json may be all that was kept
        add_examples(report, last[0])
    report.write()
    return report.folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="of a run or of an evaluation")
    parser.add_argument("--output", type=Path, help="folder to write to; needed with several folders")
    parser.add_argument("--manifest", type=Path, help=f"of the training set (default: {MANIFEST}, where it exists)")
    parser.add_argument("--published", metavar="MODEL", help="row of the paper's table to put the last model beside")
    args = parser.parse_args()
    print(f"  {write(args.folders, args.output, args.manifest, args.published)}/report.md, report.html and report.json")


if __name__ == "__main__":
    run_command(main)
