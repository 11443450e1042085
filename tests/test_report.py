"""The report: its numbers on made-up scores, what it says of them, and how the page looks in a browser."""

import html
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from omegaconf import OmegaConf

from common.files import write_text
from data_prep.benchmarks import BENCHMARKS
from eval import report
from eval.published import PUBLISHED, published_row
from eval.statistics import interval, mean_interval
from recipe.compose import compose
from recipe.monitor.compute import compute
from recipe.monitor.curves import BUDGETS, backbone
from tests.conftest import ROOT

LENGTHS = {"mean": 900.4, "p10": 100.0, "p50": 800.0, "p90": 1500.0, "p99": 2000.0}
LENGTHS |= {"right": [3, 1], "wrong": [0, 4], "edges": [0.0, 1000.0, 2000.0]}


def task_scores(task, fractions, samples, judged=False):
    """Return a task's part of scores.json from each problem's fraction of correct samples."""
    fractions = np.array(fractions, dtype=float)
    track = {
        "avg": float(fractions.mean()),
        "ci95": interval(fractions),
        "maj": float(np.mean(fractions > 0.5)),
        "errors": 0,
    }
    track |= {"pass": {"1": track["avg"], str(samples): float(np.mean(fractions > 0))}}
    track |= {"per_problem": {f"{task}-{i}": fraction for i, fraction in enumerate(fractions.tolist())}}
    tracks = {"official": track, "strict-typed": track | {"errors": 2}}
    counts = dict.fromkeys(("graded", "A", "B", "C", "overflow", "unparsed", "audited", "disputed"), 5)
    if judged:
        tracks["official+judge"] = {name: value for name, value in track.items() if name != "errors"}
    return {"problems": len(fractions), "samples": samples, "avg": track["avg"], "ci95": track["ci95"]} | {
        **{"tracks": tracks, "no_box": 0.25, "cut_off": None, "distinct_4": 0.5, "tokens": LENGTHS, "reasons": {}},
        "judged": counts if judged else None,
    }


def evaluation(folder, model, tasks, samples=2, judged=False):
    """Write an evaluation's folder: scores of task to fractions, and a graded sample of each problem of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = {task: task_scores(task, fractions, samples, judged) for task, fractions in tasks.items()}
    mean, bounds = mean_interval([np.array(fractions, dtype=float) for fractions in tasks.values()])
    means = {track: {"avg": mean, "ci95": bounds} for track in next(iter(scores.values()))["tracks"]}
    whole = {"model": model, "track": "official", "mean": mean, "ci95": bounds, "means": means, "judge": None}
    (folder / "scores.json").write_text(json.dumps(whole | {"tasks": scores}))
    task, fractions = next(iter(tasks.items()))
    samples_file, grades = [], []
    for i, fraction in enumerate(fractions):
        keys = {"task": task, "problem_id": f"{task}-{i}", "sample": 0}
        samples_file.append(keys | {"seed": i, "prompt": "What is <b>2 + 2</b>?", "answer": "4", "response": "So 4"})
        grades.append(keys | {"rule": int(fraction > 0), "reason": "no_box"})
    for name, records in (("samples", samples_file), ("grades", grades)):
        (folder / f"{task}.{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def make_run(run):
    """Write a run of three steps with an evaluation before and after, and return its folder."""
    start, step = map(json.loads, (ROOT / "tests" / "cases" / "metrics.jsonl").read_text().splitlines())
    evaluation(run / "eval" / "base", "models/demo", {"demo": [0, 0, 0, 0]})
    evaluation(run / "eval" / "step_3", "outputs/demo/export/step_3", {"demo": [1, 0.5, 0.5, 0]})
    lines = [start, *(step | {"step": number} for number in (1, 2, 3))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    OmegaConf.save(compose("demo", ["trainer.nnodes=4", "trainer.n_gpus_per_node=4"], "cuda"), run / "config.yaml")
    return run


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A run's folder with its report; only to be read."""
    return report.write([make_run(tmp_path_factory.mktemp("runs") / "run")])


@pytest.fixture
def no_pictures(monkeypatch):
    """For tests of numbers: drawing takes most of a report's time."""
    for name in ("draw_scores", "draw_pass_at_k", "draw_lengths"):
        monkeypatch.setattr(report, name, lambda _, path: write_text(path, ""))


def table(folder, name):
    """Return the rows of a table of report.json, by their first column."""
    rows = json.loads((folder / "report.json").read_text())["tables"][name]
    return {next(iter(row.values())): row for row in rows}


def test_the_report_shows_both_evaluations_and_the_difference(reported):
    text = (reported / "report.md").read_text()
    low, high = (100 * end for end in interval(np.array([1, 0.5, 0.5, 0])))
    top = 100 * (1 - 0.025 ** (1 / 4))  # four problems that none solved
    assert f"| demo (avg@2, 4 problems) | 0.0 [0.0, {top:.1f}] | 50.0 [{low:.1f}, {high:.1f}] |" in text
    low, high = (100 * end for end in mean_interval([np.array([1, 0.5, 0.5, 0])], lowest=-1)[1])
    assert f"| demo (avg@2, 4 problems) | +50.0 [{low:.1f}, {high:.1f}] |" in text
    assert "The mean score goes from 0.0 (base) to 50.0 (step_3) percent." in text
    assert "The data cannot tell the two apart on demo." in text
    p = table(reported, "step_3 minus base")["demo (avg@2, 4 problems)"]["p"]
    assert p == pytest.approx(2 / 8, abs=0.02), "two of the signs of three problems go as far"
    for picture in ("curves", "scores", "pass_at_k", "lengths"):
        assert (reported / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_nothing_else(reported):
    page = (reported / "report.html").read_text()
    assert page.count("data:image/png;base64,") == page.count("<img") == 4
    assert "http" not in page.split("<body>")[1]
    assert "<b>" not in page, "a response is text"


def test_report_json_has_numbers_as_numbers(reported):
    scores = table(reported, "scores")["demo (avg@2, 4 problems)"]
    low, high = interval(np.array([1, 0.5, 0.5, 0]))
    assert scores["step_3"] == {"value": 0.5, "low": low, "high": high}
    assert table(reported, "compute of run")["steps"]["this run"] == 3
    responses = table(reported, "responses")["demo"]
    assert (responses["tokens, mean"], responses["no box"], responses["cut off"]) == (900.4, 0.25, None)
    numbers = json.loads((reported / "report.json").read_text())
    assert numbers["evaluations"]["base"]["tasks"]["demo"]["tracks"]["strict-typed"]["errors"] == 2
    assert len(numbers["training of run"]["curves"]["reward"]) == 3


def test_the_report_counts_what_was_computed_beside_the_published(reported):
    text = (reported / "report.md").read_text()
    rows = dict(line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.startswith("| "))
    assert rows["steps"] == "3 | 4,380"
    assert rows["optimizer steps"] == "12 | 17,520"
    assert rows["prompts"] == "96 | 1,121,280"
    assert rows["responses"] == "768 | 8,970,240"
    assert rows["tokens generated"] == "12,054 | not stated", "3 steps of 256 responses of 15.6953 tokens"
    assert rows["budget by the paper's formula (tokens)"] == "98,304 | 1.4e11"
    assert rows["tokens generated / budget"].startswith("0.12 |")
    assert rows["GPU hours"] == "0.09 | about 11,500 (A800)", "3 steps of 5.67 and 1.45 s on 4 nodes of 4"
    assert "BroRL 6.8e11" in text


def test_zero_is_said_plainly(tmp_path, no_pictures):
    for name in ("base", "step_3"):
        evaluation(tmp_path / "eval" / name, "m", {"demo": [0, 0, 0, 0]})
    report.write([tmp_path])
    assert "zero before and after" in (tmp_path / "report.md").read_text()


def test_one_evaluation_is_not_compared(tmp_path, no_pictures):
    folder = evaluation(tmp_path / "one", "m", {"demo": [0, 1, 1]})
    assert report.write([folder]) == folder
    text = (folder / "report.md").read_text()
    assert "Only one evaluation is there" in text
    assert "against" not in text


def test_models_are_compared_over_the_same_problems(tmp_path, no_pictures):
    """One benchmark differs on every problem, the other on none; the problems lie in another order in one file."""
    first = evaluation(tmp_path / "a", "some/first", {"AIME24": [0.25] * 20 + [0.5] * 10, "AMC23": [0.5] * 40}, 4)
    other = evaluation(tmp_path / "b", "some/other", {"AIME24": [0.5] * 20 + [0.75] * 10, "AMC23": [0.5] * 40}, 4)
    scores = json.loads((other / "scores.json").read_text())
    for track in scores["tasks"]["AIME24"]["tracks"].values():
        track["per_problem"] = dict(reversed(track["per_problem"].items()))
    (other / "scores.json").write_text(json.dumps(scores))
    out = report.write([first, other], tmp_path / "out")
    text = (out / "report.md").read_text()
    assert "other is better on AIME24 and the mean of 2. The data cannot tell the two apart on AMC23." in text
    found = table(out, "other minus first")
    row = found["AIME24 (avg@4, 30 problems)"]
    assert row["other minus first"]["value"] == 0.25
    assert row["p"] == pytest.approx(1 / 10_001)
    assert row["p, Holm"] == pytest.approx(2 / 10_001)
    assert found["AMC23 (avg@4, 40 problems)"]["p"] == 1
    assert found["mean of 2"]["other minus first"]["value"] == 0.125


def test_only_common_benchmarks_are_compared_and_the_mean_is_theirs(tmp_path, no_pictures):
    first = evaluation(tmp_path / "a", "a", {"AIME24": [0, 1, 1], "AMC23": [1, 1, 0], "Minerva": [0, 0, 0]})
    other = evaluation(tmp_path / "b", "b", {"AIME24": [1, 1, 1], "AMC23": [1, 0, 0]})
    out = report.write([first, other], tmp_path / "out")
    assert table(out, "scores")["mean of 2"]["a"]["value"] == pytest.approx(2 / 3)
    assert "Left out, since not every model has them: Minerva." in (out / "report.md").read_text()


def test_another_protocol_and_the_judge_are_named(tmp_path, no_pictures):
    folder = evaluation(tmp_path / "a", "a", {"AIME24": [0, 1, 1]})
    scores = json.loads((folder / "scores.json").read_text())
    scores["protocol"] = {"AIME24": {"prompt": "training", "temperature": 0.7, "top_p": 0.9, "max_tokens": 64}}
    (folder / "scores.json").write_text(json.dumps(scores | {"judge": {"model": "some/judge", "audit": 0.05}}))
    report.write([folder])
    text = (folder / "report.md").read_text()
    assert "a was not sampled by the paper's protocol: max_tokens=64 and prompt=training." in text
    assert "Judge of a: some/judge." in text


def test_the_published_means_recompute_from_the_published_rows():
    """DeepScaleR's is printed as 44.88, and its row gives 44.90."""
    complete = [name for name in PUBLISHED["models"] if "mean" in published_row(name)]
    assert len(complete) == len(PUBLISHED["models"]) - 1, "BroRL has none"
    for name in complete:
        row = published_row(name)
        off = 100 * abs(sum(row[task] for task in BENCHMARKS) / 9 - row["mean"])
        assert off < (0.02 if name == "DeepScaleR-1.5B-Preview" else 0.0051), name


def test_a_published_model_is_recognised_and_compared(tmp_path, no_pictures):
    """Half of 32 samples correct on 30 problems: sqrt(0.25 / 31 / 30) is the error, the difference's sqrt(2) of it."""
    tasks = {"AIME24": [0.5] * 30, "AMC23": [0.5] * 39, "demo": [0.5] * 30}
    folder = evaluation(tmp_path / "a", "hbx/JustRL-DeepSeek-1.5B", tasks, 32, judged=True)
    report.write([folder])
    rows = json.loads((folder / "report.json").read_text())["tables"]["JustRL-DeepSeek-1.5B beside the published"]
    assert [(row["benchmark"], row["grader"]) for row in rows] == [
        ("AIME24", track) for track in ("official", "strict-typed", "official+judge")
    ], "AMC23 lacks a problem"
    half = 1.96 * math.sqrt(2 * 0.25 / 31 / 30)
    assert rows[0]["published"] == 0.526
    expected = {"value": -0.026, "low": -0.026 - half, "high": -0.026 + half}
    assert rows[0]["difference"] == pytest.approx(expected)
    assert "| AIME24 | official | 50.0 | 52.60 | -2.6 [-7.1, 1.9] |" in (folder / "report.md").read_text()


def test_a_row_can_be_named(tmp_path, no_pictures):
    folder = evaluation(tmp_path / "a", "outputs/x/export/step_9", {"AIME24": [0.5] * 30}, 4)
    report.write([folder], row="BroRL")
    text = (folder / "report.md").read_text()
    assert "## step_9 beside the published BroRL" in text
    assert "no benchmark is here complete and with the paper's number of samples" in text
    with pytest.raises(ValueError, match="GPT: not in the paper's table, which has DeepSeek-R1"):
        report.write([folder], row="GPT")


def test_the_clean_part_leaves_out_what_the_manifest_lists(tmp_path, no_pictures):
    folder = evaluation(tmp_path / "a", "a", {"AIME24": [1, 0, 0.5, 0.5], "AMC23": [1, 1, 0, 0]})
    found = {"AIME24": {"problem_ids": ["AIME24-0"]}, "AMC23": {"problem_ids": []}}
    manifest = tmp_path / "train.manifest.json"
    manifest.write_text(json.dumps({"settings": {"decontaminate": "report"}, "contamination": found}))
    report.write([folder], manifest=manifest)
    clean = table(folder, "clean")
    assert clean["AIME24 (avg@2, 4 problems)"]["a"]["value"] == pytest.approx(1 / 3)
    assert clean["AMC23 (avg@2, 4 problems)"]["a"]["value"] == 0.5
    assert clean["mean of 2"]["a"]["value"] == pytest.approx(5 / 12)
    assert [row["problems left out"] for row in clean.values()] == [1, 0, 1]
    manifest.write_text(json.dumps({"settings": {"decontaminate": "drop"}, "contamination": found}))
    report.write([folder], manifest=manifest)
    assert "no problem of a benchmark is left in the training set" in (folder / "report.md").read_text()
    manifest.write_text(json.dumps({"settings": {"decontaminate": "off"}}))
    with pytest.raises(ValueError, match="has none of these benchmarks"):
        report.write([folder], manifest=manifest)


def test_what_cannot_be_compared_is_one_error(tmp_path, no_pictures):
    first = evaluation(tmp_path / "a", "a", {"AIME24": [0, 1, 1]})
    with pytest.raises(ValueError, match="is it a run's folder"):
        report.write([tmp_path])
    with pytest.raises(ValueError, match="needs --output"):
        report.write([first, first])
    with pytest.raises(ValueError, match="AIME24: a and b were asked different problems"):
        report.write([first, evaluation(tmp_path / "b", "b", {"AIME24": [0, 1]})], tmp_path / "out")
    with pytest.raises(ValueError, match="a and c have no benchmark in common"):
        report.write([first, evaluation(tmp_path / "c", "c", {"AMC23": [0, 1, 1]})], tmp_path / "out")
    (first / "scores.json").write_text(
        json.dumps({"model": "a", "track": "official", "tasks": {"AIME24": {"avg": 0.5}}})
    )
    with pytest.raises(ValueError, match="grade again"):
        report.write([first])


def test_the_published_budgets_are_the_papers_formula():
    for name in ("justrl_deepseek", "justrl_nemotron"):
        config = compose(name, [], "cuda")
        step = {"critic/score/mean": 0.0, "response_length/mean": 4500.0, "timing_s/step": 296.0}
        found = compute(dict.fromkeys(range(1, config.trainer.total_training_steps + 1), step), config)
        assert found["budget"] == pytest.approx(BUDGETS[f"JustRL-{backbone(config)}"], rel=0.06)
        assert found["updates"] == 4 * config.trainer.total_training_steps
    assert found["tokens"] / found["budget"] == pytest.approx(0.27, abs=0.01), "facts: about 0.3"


def test_the_papers_run_is_drawn_before_its_bands_and_curve(tmp_path):
    """The same metrics give another picture under the paper's config; a gradient norm of null does not stop it."""
    run_folder = make_run(tmp_path)
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    for step in range(4, 130):
        lines.append({"step": step, "data": lines[-1]["data"] | {"actor/grad_norm": None if step % 2 else 0.1}})
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(run_folder / "eval")  # a run without evaluations has a report too
    pictures, texts = [], []
    for model in ("models/other", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"):
        config = compose("justrl_deepseek", [f"actor_rollout_ref.model.path={model}"], "cuda")
        OmegaConf.save(config, run_folder / "config.yaml")
        report.write([run_folder])
        pictures.append((run_folder / "curves.png").read_bytes())
        texts.append((run_folder / "report.md").read_text())
    assert pictures[0] != pictures[1]
    line = "- step 5: mean response length (tokens) 16, mean of 5, is below the paper's band, 4,000 to "
    assert ("Dashed: its AIME24" in texts[0], line in texts[0]) == (False, False)
    assert ("Dashed: its AIME24" in texts[1], line in texts[1]) == (True, True)


def test_metrics_without_a_config_are_refused(tmp_path):
    (make_run(tmp_path) / "config.yaml").unlink()
    shutil.rmtree(tmp_path / "eval")
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        report.write([tmp_path])


def chromium(*arguments):
    """Run a headless browser and return what it printed, stdout and stderr."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine to open the page in")
    options = [
        "--headless",
        "--no-sandbox",
        "--hide-scrollbars",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--virtual-time-budget=5000",
    ]
    done = subprocess.run([browser, *options, *arguments], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, done.stderr


def test_the_page_fits_a_phone_and_prints(reported, tmp_path):
    """A run and a model with a long name: wide tables."""
    other = evaluation(tmp_path / "a", "some/DeepSeek-R1-Distill-Qwen-1.5B-and-more", {"demo": [0, 0, 1, 0.5]})
    page = report.write([reported, other], tmp_path / "out") / "report.html"
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe style="width:390px;height:844px;border:0" srcdoc="{html.escape(page.read_text())}"></iframe><script>'
        "onload = () => { const d = document.querySelector('iframe').contentDocument;"
        "const images = [...d.images].every(i => i.complete && i.naturalWidth > 0);"
        "const wide = [...d.querySelectorAll('.scroll')].some(s => s.scrollWidth > s.clientWidth);"
        "document.title = [d.documentElement.scrollWidth, images, wide].join(' '); }</script>"
    )
    dom, log = chromium("--dump-dom", frame.as_uri())
    assert re.search(r"<title>(.*?)</title>", dom)[1] == "390 true true", "tables scroll, and the page does not"
    assert "CONSOLE" not in log
    chromium("--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}", page.as_uri())
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
