"""The report: its numbers on made-up scores, what it says of them, and how the page looks in a browser."""

import html
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf

from eval import report
from eval.statistics import interval, mean_interval
from recipe.compose import compose
from recipe.monitor.compute import compute
from recipe.monitor.curves import BUDGETS, backbone
from recipe.monitor.report import training_section
from tests.conftest import HANGING_SECONDS, ROOT

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
    assert text.splitlines()[2] == (
        f"**step_3 cannot be told apart from base on demo: 50.0 percent correct against 0.0, "
        f"a difference of +50.0 [{low:.1f}, {high:.1f}] points.**"
    )
    assert "The data cannot tell the two apart on demo." in text
    p = table(reported, "step_3 minus base")["demo (avg@2, 4 problems)"]["p"]
    assert p == pytest.approx(2 / 8, abs=0.02), "two of the signs of three problems go as far"
    for picture in ("curves", "details", "scores", "pass_at_k", "lengths"):
        assert (reported / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_the_documents_page_is_the_report_with_its_figures_beside_it(tmp_path, monkeypatch):
    run, page = make_run(tmp_path / "run"), tmp_path / "docs" / "mine.md"
    samples = run / "eval" / "step_3" / "demo.samples.jsonl"
    linked = "So ![plot](diagram.png) and [all](scores.png)\\n![scores](scores.png)\\n[x](y.html) ö\\n\\n4"
    samples.write_text(samples.read_text().replace("So 4", linked))
    monkeypatch.setattr(sys, "argv", ["report", str(run), "--page", str(page)])
    report.main()
    text, command = page.read_text().split("\n## How it was made\n")
    assert f"python -m eval.report {run} --page {page}\n" in command
    samples = "[Samples side by side](samples.html): responses of base and step_3, with their grades.\n\n"
    assert text.replace("](mine_", "](") == (run / "report.md").read_text().replace(samples, "")
    assert all(f"    {line}\n" in text for line in linked.split("\\n")), "a response stays as it is"
    pictures = re.findall(r"\]\((mine_\w+\.png)\)", text)
    assert len(pictures) == 5
    for name in pictures:
        assert (page.parent / name).read_bytes() == (run / name.removeprefix("mine_")).read_bytes()
    report.main()  # a page of its own is replaced


def test_the_page_needs_nothing_else(reported):
    page = (reported / "report.html").read_text()
    assert (page.count("<svg"), page.count("<img")) == (5, 0)
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
    assert "There is one evaluation" in text
    assert "against" not in text


def test_the_published_budgets_are_the_papers_formula():
    for name in ("justrl_deepseek", "justrl_nemotron"):
        config = compose(name, [], "cuda")
        step = {"critic/score/mean": 0.0, "response_length/mean": 4500.0, "timing_s/step": 296.0}
        found = compute(dict.fromkeys(range(1, config.trainer.total_training_steps + 1), step), config)
        assert found["budget"] == pytest.approx(BUDGETS[f"JustRL-{backbone(config)}"], rel=0.06)
        assert found["updates"] == 4 * config.trainer.total_training_steps
    assert found["tokens"] / found["budget"] == pytest.approx(0.27, abs=0.01), "facts: about 0.3"


def test_what_dynamic_sampling_throws_away_is_counted():
    config = compose("justrl_deepseek", [], "cuda")
    used = {"critic/score/mean": 0.0, "response_length/mean": 4500.0}
    thrown = used | {"rollout/generated_prompts": 512.0, "rollout/generated_tokens": 8 * 512 * 4000.0}
    found = compute({1: used, 2: thrown}, config)
    assert (found["prompts"], found["responses"]) == (256 + 512, 8 * (256 + 512))
    assert found["tokens"] == 8 * 256 * 4500 + 8 * 512 * 4000
    assert found["updates"] == 8, "as many updates as ever"


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
    line = "- step 5: mean response length (tokens): 16, mean of 5, is below the paper's band, 4,000 to "
    assert ("Dashed: its AIME24" in texts[0], line in texts[0]) == (False, False)
    assert ("Dashed: its AIME24" in texts[1], line in texts[1]) == (True, True)


def test_metrics_without_a_config_are_refused(tmp_path):
    (make_run(tmp_path) / "config.yaml").unlink()
    shutil.rmtree(tmp_path / "eval")
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        report.write([tmp_path])


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("line", ["null", '{"step": 9, "data": {"critic/score/mean": "x"}}', '{"step": 9, "da'])
def test_damaged_lines_are_named_and_left_out(tmp_path, line):
    run_folder = make_run(tmp_path)
    path = run_folder / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "data": {"critic/score/mean": null}}\n' + line)
    text = (report.write([run_folder]) / "report.md").read_text()
    assert "Trained 4 steps" in text
    assert f"Left out: {path}, line 6: " in text
    assert json.loads((run_folder / "report.json").read_text())[f"training of {run_folder.name}"]["damaged"] in text


def test_metrics_that_are_all_damaged_are_named(tmp_path):
    (make_run(tmp_path) / "metrics.jsonl").write_text("null\n12\n")
    shutil.rmtree(tmp_path / "eval")
    text = (report.write([tmp_path]) / "report.md").read_text()
    assert f"No step can be read: {tmp_path}/metrics.jsonl, line 1: is no JSON object (and 1 more" in text


@pytest.mark.parametrize("content", ["", "null", "[1]", "data: [1,", "data: {max_response_length: 64}", "trainer: 5"])
def test_a_damaged_config_is_one_line(tmp_path, content):
    (make_run(tmp_path) / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/config\.yaml: damaged \(.*\); each start of the run writes"):
        training_section(tmp_path, tmp_path)


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
    done = subprocess.run(
        [browser, *options, *arguments], capture_output=True, text=True, timeout=HANGING_SECONDS, check=True
    )
    return done.stdout, done.stderr


def test_the_page_fits_a_phone_and_prints(reported, tmp_path):
    """A run and a model with a long name: wide tables. A mark shows its value where it is pointed at."""
    other = evaluation(tmp_path / "a", "some/DeepSeek-R1-Distill-Qwen-1.5B-and-more", {"demo": [0, 0, 1, 0.5]})
    page = report.write([reported, other], tmp_path / "out") / "report.html"
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe style="width:390px;height:844px;border:0" srcdoc="{html.escape(page.read_text())}"></iframe><script>'
        "onload = () => { const d = document.querySelector('iframe').contentDocument;"
        "const drawn = [...d.querySelectorAll('svg')].every(s => s.getBoundingClientRect().height > 50);"
        "const wide = [...d.querySelectorAll('.scroll')].some(s => s.scrollWidth > s.clientWidth);"
        "const mark = [...d.querySelectorAll('.values use')].find(m => m.textContent.includes('step_3, demo'));"
        "mark.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));"
        "const shown = d.querySelector('.tip').textContent.split(': ')[0];"
        "document.title = [d.documentElement.scrollWidth, drawn, wide, shown].join(' '); }</script>"
    )
    dom, log = chromium("--dump-dom", frame.as_uri())
    assert re.search(r"<title>(.*?)</title>", dom)[1] == "390 true true run step_3, demo", (
        "tables scroll, and the page does not"
    )
    assert "CONSOLE" not in log
    chromium("--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}", page.as_uri())
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
