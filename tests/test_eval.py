"""Seeds, grades, intervals and the report, on known answers."""

import json
import math

import numpy as np
import pytest
from omegaconf import OmegaConf

from eval import grade, report
from eval.compute import compute
from eval.generate import check_fingerprint, read_samples, sample_seed
from eval.statistics import average, bootstrap_interval, paired_difference
from recipe.compose import compose
from recipe.curves import BUDGETS, backbone
from tests.conftest import ROOT


def test_seeds_depend_on_each_argument_and_nothing_else():
    assert sample_seed(0, "AIME24", "AIME24-0", 0) == sample_seed(0, "AIME24", "AIME24-0", 0)
    seeds = {sample_seed(b, t, p, s) for b in (0, 1) for t in ("a", "b") for p in ("0", "1") for s in range(32)}
    assert len(seeds) == 256
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_the_interval_agrees_with_the_normal_approximation():
    rng = np.random.default_rng(1)
    values = (rng.random(400) < 0.3).astype(float)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.006)
    assert high == pytest.approx(values.mean() + half, abs=0.006)
    assert bootstrap_interval(np.zeros(30)) == (0.0, 0.0)


def test_paired_difference_uses_the_pairs():
    before = np.array([0.0, 0.25, 0.5, 0.75] * 20)
    mean, (low, high) = paired_difference(before, before + 0.25)
    assert mean == low == high == 0.25
    assert average(np.array([[1, 0], [1, 1]])) == 0.75


def write_samples(folder, task, responses, samples=2):
    """Write a samples file as eval.generate does, and its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{task}.samples.jsonl", "w") as file:
        for i, text in enumerate(responses):
            record = {"task": task, "problem_id": str(i // samples), "sample": i % samples, "seed": i, "prompt": "p"}
            record |= {"answer": "4", "response": text, "tokens": 5, "finish_reason": "stop"}
            file.write(json.dumps(record) + "\n")
    (folder / f"{task}.meta.json").write_text(json.dumps({"model": "m"}))


def test_grading_and_its_reasons(tmp_path):
    write_samples(tmp_path, "demo", [r"\boxed{4}", r"\boxed{5}", "no", r"\boxed{4}"])
    scores = grade.run(tmp_path)
    task = scores["tasks"]["demo"]
    assert (task["avg"], task["problems"], task["samples"], task["no_box"]) == (0.5, 2, 2, 0.25)
    assert scores["mean"] == 0.5
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "demo.grades.jsonl").open()]
    assert reasons == ["match", "another answer", "no box", "match"]


def test_incomplete_samples_are_refused(tmp_path):
    write_samples(tmp_path, "demo", [r"\boxed{4}", r"\boxed{5}", "no"])
    with pytest.raises(ValueError, match=r"between 1 and 2 samples; run eval\.generate again"):
        grade.run(tmp_path)
    with pytest.raises(ValueError, match=r"has no \*\.samples\.jsonl"):
        grade.run(tmp_path / "nothing")


def test_a_torn_last_line_is_left_out_and_any_other_is_an_error(tmp_path):
    path = tmp_path / "t.samples.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    assert read_samples(path) == [{"a": 1}]
    path.write_text('{"a"\n{"a": 2}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_samples(path)


def test_samples_of_other_settings_are_not_mixed(tmp_path):
    settings = {"model": "m", "weights": None, "prompt": "training", "temperature": 0.7, "top_p": 0.9}
    settings |= {"max_tokens": 8, "base_seed": 0}
    check_fingerprint(tmp_path / "t.meta.json", settings)
    check_fingerprint(tmp_path / "t.meta.json", settings)
    with pytest.raises(ValueError, match=r"made with temperature=0\.7, not 1\.0"):
        check_fingerprint(tmp_path / "t.meta.json", settings | {"temperature": 1.0})


@pytest.fixture
def run_folder(tmp_path):
    """A run of three steps with an evaluation before and after."""
    start, step = map(json.loads, (ROOT / "tests" / "cases" / "metrics.jsonl").read_text().splitlines())
    lines = [start, *(step | {"step": number} for number in (1, 2, 3))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    OmegaConf.save(compose("demo", ["trainer.n_gpus_per_node=4"], "cuda"), tmp_path / "config.yaml")
    write_samples(tmp_path / "eval" / "base", "demo", ["no"] * 4)
    write_samples(tmp_path / "eval" / "step_3", "demo", [r"\boxed{4}", "no"] * 2)
    return tmp_path


def test_the_report_shows_both_evaluations_and_the_difference(run_folder):
    for name in ("base", "step_3"):
        grade.run(run_folder / "eval" / name)
    report.write(run_folder)
    text = (run_folder / "report.md").read_text()
    assert "| demo (avg@2, 2 problems) | 0.0 [0.0, 0.0] | 50.0 [50.0, 50.0] | +50.0 [50.0, 50.0] |" in text
    page = (run_folder / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "<table>" in page
    assert "http" not in page.split("<body>")[1], "the page must not need anything else"
    assert (run_folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_zero_is_said_plainly(run_folder):
    write_samples(run_folder / "eval" / "step_3", "demo", ["no"] * 4)
    for name in ("base", "step_3"):
        grade.run(run_folder / "eval" / name)
    report.write(run_folder)
    assert "zero before and after" in (run_folder / "report.md").read_text()


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="is it a run's folder"):
        report.write(tmp_path)


def test_the_report_counts_what_was_computed_beside_the_published(run_folder):
    report.write(run_folder)
    text = (run_folder / "report.md").read_text()
    rows = dict(row.strip("| ").split(" | ", 1) for row in text.splitlines() if row.startswith("| "))
    assert rows["steps"] == "3 | 4,380"
    assert rows["optimizer steps"] == "12 | 17,520"
    assert rows["prompts"] == "96 | 1,121,280"
    assert rows["responses"] == "768 | 8,970,240"
    assert rows["tokens generated"] == "12,054 | not stated", "3 steps of 256 responses of 15.6953 tokens"
    assert rows["budget by the paper's formula (tokens)"] == "98,304 | 1.4e11"
    assert rows["tokens generated / budget"].startswith("0.12 |")
    assert rows["GPU hours"] == "0.09 | about 11,500 (A800)", "3 steps of 5.67 and 1.45 s on 4 nodes of 4"
    assert "BroRL 6.8e11" in text


def test_the_published_budgets_are_the_papers_formula():
    for name in ("justrl_deepseek", "justrl_nemotron"):
        config = compose(name, [], "cuda")
        step = {"critic/score/mean": 0.0, "response_length/mean": 4500.0, "timing_s/step": 296.0}
        found = compute(dict.fromkeys(range(1, config.trainer.total_training_steps + 1), step), config)
        assert found["budget"] == pytest.approx(BUDGETS[f"JustRL-{backbone(config)}"], rel=0.06)
        assert found["updates"] == 4 * config.trainer.total_training_steps
    assert found["tokens"] / found["budget"] == pytest.approx(0.27, abs=0.01), "facts: about 0.3"


def test_the_papers_run_is_drawn_before_its_bands_and_curve(run_folder):
    """The same metrics give another picture under the paper's config; a gradient norm of null does not stop it."""
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    for step in range(4, 130):
        lines.append({"step": step, "data": lines[-1]["data"] | {"actor/grad_norm": None if step % 2 else 0.1}})
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pictures, texts = [], []
    for model in ("models/other", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"):
        config = compose("justrl_deepseek", [f"actor_rollout_ref.model.path={model}"], "cuda")
        OmegaConf.save(config, run_folder / "config.yaml")
        report.write(run_folder)
        pictures.append((run_folder / "curves.png").read_bytes())
        texts.append((run_folder / "report.md").read_text())
    assert pictures[0] != pictures[1]
    line = "- step 5: mean response length (tokens) 16, mean of 5, is below the paper's band, 4,000 to "
    assert ("Dashed: its AIME24" in texts[0], line in texts[0]) == (False, False)
    assert ("Dashed: its AIME24" in texts[1], line in texts[1]) == (True, True)


def test_metrics_without_a_config_are_refused(run_folder):
    (run_folder / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        report.write(run_folder)
