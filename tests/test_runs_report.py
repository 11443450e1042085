"""The report on training runs: differences that were put in are found, costs are charged, failures are listed."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from common.figures import file_name
from common.files import write_text
from common.markdown import percent, signed_percent
from eval import report
from eval.runs import report as runs_report
from eval.runs.figures import POINTS_OF_FIGURE, seed_band, thinned
from eval.runs.read import GENERATED
from eval.runs.tables import BETTER, ONE_SEED, UNCLEAR, WORSE
from eval.statistics import student_mean
from recipe import arms
from recipe.compose import compose
from tests.test_report import evaluation

STEPS, PROBLEMS, SAMPLES = 6, 64, 4
CLIP = {"actor_rollout_ref.actor.clip_ratio_high": 0.2}
TOTAL = f"trainer.total_training_steps={STEPS}"


@pytest.fixture(scope="module")
def config():
    return compose("demo", [TOTAL], "cpu")


class Maker:
    """Writes the folders of runs: final accuracy 0.6 and what an arm adds, a seed's own offset in both."""

    def __init__(self, folder, config, seed=0):
        self.folder, self.config = folder, config
        self.rng = np.random.default_rng(seed)
        self.difficulty = self.rng.normal(0.4, 1.5, PROBLEMS)

    def run(self, arm, seed, effect=0.0, tokens=1000, seconds=3.6, steps=STEPS, **more):
        name = more.pop("name", f"x_{arm.replace('+', '_')}_s{seed}")
        folder = self.folder / name
        config = self.config.copy()
        allow = {} if arm == "baseline" else {part: [f"trainer.{part}"] for part in arm.split("+")}
        updates = {"justrl.allow": allow, "data.seed": seed, "trainer.experiment_name": name} | more.pop("config", {})
        for key, value in updates.items():
            OmegaConf.update(config, key, value, merge=False, force_add=True)
        (folder / "validation").mkdir(parents=True)
        OmegaConf.save(config, folder / "config.yaml")
        chance = 1 / (1 + np.exp(-(self.difficulty + effect + self.rng.normal(0, 0.05))))
        graded = self.rng.binomial(1, chance, (SAMPLES, PROBLEMS))
        lines = [
            {"input": f"problem {problem}", "output": "", "gts": "1", "acc": float(graded[sample, problem])}
            for problem in self.rng.permutation(PROBLEMS)
            for sample in range(SAMPLES)
        ]
        final = float(graded.mean())
        write_lines(folder / "validation" / f"{STEPS}.jsonl", lines)
        write_lines(folder / "metrics.jsonl", [metrics(i, final, tokens, seconds, more) for i in range(steps + 1)])
        return folder


def metrics(step, final, tokens, seconds, more):
    """Accuracy rises from 0.2 to its end in equal parts."""
    data = {} if step % 2 else {"val-core/demo_arithmetic/acc/mean@4": 0.2 + (final - 0.2) * step / STEPS}
    if step:
        data |= {"critic/score/mean": 0.1 * step, "actor/entropy": 0.3, "response_length/mean": tokens / 256}
        data |= {"response_length/max": 64.0, "response_length/clip_ratio": 0.125, "timing_s/step": seconds}
        data |= {"perf/total_num_tokens": tokens + 500, "timing_s/testing": 9.0} | more
    return {"step": step, "data": data}


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def made(tmp_path, config, monkeypatch):
    """Makes runs of arms a to d, as if the config folder had them; drawn once in a test of its own."""
    monkeypatch.setattr(arms, "arm_names", lambda: [*"abcd"])
    monkeypatch.setattr(arms, "title", lambda name: f"Arm {name}: a | b (source).")
    return Maker(tmp_path, config)


@pytest.fixture
def undrawn(monkeypatch):
    for name in ("draw_differences", "draw_curves"):
        monkeypatch.setattr(runs_report, name, lambda *arguments: write_text(arguments[-1].with_suffix(".svg"), ""))


def write(folders, **options):
    """Write a report beside the runs, and return its numbers and its text."""
    out = runs_report.write(folders, folders[0].parent / "out", **options)
    return json.loads((out / "report.json").read_text()), (out / "report.md").read_text()


def rows(numbers, table="changes"):
    return {row["arm"]: row for row in numbers["tables"][table]}


def test_differences_that_were_put_in_are_found_and_others_are_not(made, undrawn):
    effects = {"baseline": 0.0, "a": 1.0, "b": -1.0, "c": 0.0}
    folders = [made.run(arm, seed, effect) for arm, effect in effects.items() for seed in (1, 2, 3, 4)]
    numbers, text = write(folders)
    found = rows(numbers)
    assert {arm: row["verdict"] for arm, row in found.items()} == {
        "baseline": "-",
        "a": BETTER,
        "b": WORSE,
        "c": UNCLEAR,
    }
    assert "Better than the baseline: a.\nWorse: b.\nCannot be told apart" in text
    for arm in "abc":
        difference = found[arm]["difference"]
        accuracy = found[arm]["final accuracy"] - found["baseline"]["final accuracy"]
        assert difference["value"] == pytest.approx(accuracy), "all seeds are there, so it is that of the means"
        assert difference["low"] < difference["value"] < difference["high"]
        half = (difference["high"] - difference["low"]) / 2
        assert found[arm]["would show"] > half, "what is found four times in five is more than what is found by half"
        assert found[arm]["seeds"] == "1, 2, 3, 4"

    surest = min((found[arm] for arm in "abc"), key=lambda row: row["p"])
    assert surest["p, Holm"] == pytest.approx(3 * surest["p"]), "three arms"


def test_bands_reach_from_the_least_to_the_greatest_seed():
    """Over tokens, which differ by seed: as far as both go, interpolated."""
    one, other = (
        pd.DataFrame({"steps": [0, 1, 2], "tokens": [0, end / 2, end], "reward": [np.nan, 0, height]})
        for end, height in ((10, 1), (20, 3))
    )
    grid, mean, low, high = seed_band([one, other], "tokens", "reward")
    assert (grid[0], grid[-1]) == (10, 10), "the second has its first reward where the first has its last"
    assert (mean[0], low[0], high[0]) == (0.5, 0, 1)
    grid, mean, low, high = seed_band([one, other], "steps", "reward")
    assert (grid.tolist(), mean.tolist(), low.tolist(), high.tolist()) == ([1, 2], [0, 2], [0, 1], [0, 3])


def test_curves_of_many_arms_have_fewer_points_and_keep_their_ends():
    band = np.tile(np.arange(4380.0), (4, 1))
    assert thinned(band, 1).shape == band.shape
    kept = thinned(band, 22 * 6)
    assert (kept[0, 0], kept[0, -1]) == (0, 4379)
    assert 40 <= kept.shape[1] <= POINTS_OF_FIGURE / (2 * 22 * 6)


def test_what_an_arm_costs_is_charged(made, undrawn):
    """Twice the tokens and three times the hours for the same accuracy by step: behind at equal budgets."""
    folders = [made.run("baseline", seed) for seed in (1, 2)] + [
        made.run("a", seed, tokens=2500, seconds=10.8) for seed in (1, 2)
    ]
    numbers, text = write(folders, x="tokens")
    row = rows(numbers)["a"]
    assert row["tokens, relative"] == 2, "1,000 and 2,500 and 500 of prompts"
    assert row["hours, relative"] == pytest.approx(3)
    final = {
        arm: [frame["validation"][str(STEPS)] for frame in seeds.values()] for arm, seeds in numbers["curves"].items()
    }
    assert row["difference at equal tokens"]["value"] == pytest.approx(
        np.mean([0.2 + (ours - 0.2) / 2 - base for ours, base in zip(final["a"], final["baseline"], strict=True)])
    ), "halfway, as accuracy rises in equal parts"
    assert (
        row["difference at equal hours"]["value"]
        < row["difference at equal tokens"]["value"]
        < row["difference"]["value"]
    )
    assert rows(numbers, "other quantities")["a"]["tokens"]["value"] == STEPS * 3000
    assert "Tokens are those of prompts and responses" in text


def test_generated_tokens_count_where_every_run_logged_them(made, undrawn):
    logged = {GENERATED: 900}
    folders = [made.run("baseline", 1, **logged), made.run("a", 1, **{GENERATED: 1800})]
    numbers, text = write(folders)
    assert rows(numbers)["a"]["tokens, relative"] == 2
    assert "Tokens are generated ones" in text
    numbers, text = write([*folders, made.run("b", 1)])
    assert rows(numbers)["a"]["tokens, relative"] == 1, "one run lacks them, so another metric is taken for all"


def test_runs_that_cannot_be_compared_are_listed_with_the_reason(made, undrawn):
    folders = [made.run(arm, seed) for arm in ("baseline", "a") for seed in (1, 2)] + [made.run("baseline", 3)]
    unfinished, failed = made.run("b", 2, steps=3), made.run("b", 1, steps=2)
    write_lines(failed / "events.jsonl", [{"time": "", "event": "failure", "cause": "ValueError: broken"}])
    (made.folder / "empty").mkdir()
    unvalidated, lone = made.run("c", 1), made.run("b", 7)
    (unvalidated / "validation" / f"{STEPS}.jsonl").unlink()
    other = made.run("d", 1, config={"actor_rollout_ref.model.path": "models/other"})
    changed, again = made.run("a", 3, config={"trainer.save_freq": 3}), made.run("a", 2, name="x_again")
    numbers, text = write(
        [*folders, unfinished, failed, unvalidated, lone, other, changed, again, made.folder / "empty"]
    )
    reasons = {row["run"]: row["reason"] for row in numbers["left out"]}
    assert reasons == {
        unfinished.name: f"ended after step 3 of {STEPS}",
        failed.name: f"ended after step 2 of {STEPS} (ValueError: broken)",
        unvalidated.name: f"has no validation/{STEPS}.jsonl",
        lone.name: "the baseline has no finished run with seed 7",
        other.name: "actor_rollout_ref.model.path is models/other, but models/demo in x_baseline_s1",
        changed.name: "trainer.save_freq differs from the other runs of a",
        "empty": "has no config.yaml: is it a run's folder?",
        again.name: "has the same arm and seed as x_a_s2",
    }
    assert list(rows(numbers)) == ["baseline", "a"]
    assert rows(numbers)["a"]["seeds"] == "1, 2", "the seeds that both have"
    for name, reason in reasons.items():
        assert f"| {name} | {reason} |" in text


def test_one_seed_is_compared_over_problems_and_has_no_verdict(made, undrawn):
    numbers, text = write([made.run("baseline", 1), made.run("a", 1, 1.5), made.run("a+b", 1)])
    row = rows(numbers)["a"]
    assert (row["verdict"], row["p, Holm"]) == (ONE_SEED, None)
    assert 0 < row["difference"]["low"] < row["difference"]["value"]
    assert row["difference at equal tokens"] == {"value": pytest.approx(row["difference"]["value"])}
    assert "One seed only, so no verdict: a and a+b." in text
    assert "- **a+b**: Arm a: a | b (source). Arm b: a | b (source). Differs from the baseline in `nothing`." in text


def test_the_page_has_the_numbers_of_the_report_and_is_the_same_each_time(made):
    folders = [made.run(arm, seed, config=own) for arm, own in (("baseline", {}), ("a", CLIP)) for seed in (1, 2)]
    page, report_folder, start = made.folder / "docs" / "my arms.md", made.folder / "out", file_name("my arms") + "_"
    write_text(report_folder / "samples.html", "of an earlier report")
    written = []
    for _ in range(2):
        numbers, text = write(folders, x="hours", page=page)
        written.append([path.read_bytes() for path in sorted({*page.parent.iterdir(), *report_folder.iterdir()})])
    assert (written[0], (report_folder / "samples.html").exists()) == (written[1], False)
    assert page.read_text().replace(start, "") == text
    for picture in ("differences", "curves"):
        assert f"]({start}{picture}.png)" in page.read_text()
        assert (page.parent / f"{start}{picture}.png").read_bytes().startswith(b"\x89PNG")
    row = rows(numbers)["a"]
    cells = next(line for line in text.splitlines() if line.startswith("| a | cannot")).strip("| ").split(" | ")
    assert cells[2:4] == [percent(row["final accuracy"]), signed_percent(row["difference"])]
    assert cells[10] == f"{row['p']:.2g}"
    assert "Differs from the baseline in `actor_rollout_ref.actor.clip_ratio_high=0.2`." in text
    assert "validated on 64 problems with 4 responses each; seeds 1 and 2." in text
    assert f"python -m eval.report {made.folder}/x_* --output {report_folder} --x hours --page '{page}'" in text
    shown = (report_folder / "report.html").read_text()
    assert shown.count("<svg") == 2
    low, middle, high = (100 * row["difference"][end] for end in ("low", "value", "high"))
    assert f"<title>a: {middle:+.1f} [{low:.1f}, {high:.1f}] points</title>" in shown
    assert "**Of 1 arm compared with the baseline: 1 cannot be told apart.**" in text
    assert numbers["verdict"] in text


def test_the_command_takes_runs_or_evaluations_and_refuses_both(made, monkeypatch, capsys):
    folders = [made.run(arm, seed) for arm in ("baseline", "a") for seed in (1, 2)]
    scored = evaluation(made.folder / "scored", "some/model", {"AIME24": [0, 1, 1]})

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["report", *map(str, words), "--output", str(made.folder / "out")])
        report.main()
        return capsys.readouterr().out

    assert f"{made.folder}/out/report.md, report.html and report.json" in command(*folders, "--x", "tokens")
    with pytest.raises(
        ValueError, match=r"x_baseline_s1: has no evaluation, and .*scored is one; give runs or evaluations alone"
    ):
        command(folders[0], scored)
    with pytest.raises(ValueError, match="--x is for several training runs alone; leave it out"):
        command(scored, "--x", "tokens")
    with pytest.raises(ValueError, match="there is no finished run of the baseline"):
        command(*folders[2:])
    with pytest.raises(ValueError, match="there is no finished run of an arm"):
        command(*folders[:2])


def test_an_arm_with_a_lenient_reward_is_judged_as_the_baseline(made, undrawn):
    """Its `acc` accepts all, its `strict` none; the baseline's reward has no `strict`."""
    folders = [made.run("baseline", 1), made.run("a", 1, **{"val-aux/demo_arithmetic/strict/mean@4": 0.0})]
    dump = folders[1] / "validation" / f"{STEPS}.jsonl"
    responses = [json.loads(line) for line in dump.read_text().splitlines()]
    write_lines(dump, [response | {"acc": 1.0, "strict": 0.0} for response in responses])
    row = rows(write(folders)[0])["a"]
    assert row["final accuracy"] == 0
    baseline = -row["difference"]["value"]
    assert 0.3 < baseline < 0.8
    assert row["difference at equal tokens"]["value"] == pytest.approx(-baseline)


def test_seeds_with_problems_of_their_own_are_compared_by_their_means(made, undrawn):
    folders = [made.run(arm, seed) for arm in ("baseline", "a") for seed in (1, 2)]
    for folder in folders[1::2]:
        dump = folder / "validation" / f"{STEPS}.jsonl"
        dump.write_text(dump.read_text().replace("problem ", "other problem "))
    numbers, text = write(folders)
    finals = {arm: [seeds[seed]["validation"][str(STEPS)] for seed in "12"] for arm, seeds in numbers["curves"].items()}
    found = student_mean(np.array(finals["a"]) - finals["baseline"])
    assert rows(numbers)["a"]["p"] == pytest.approx(found.p)
    assert "4 responses each, other problems for each seed; seeds 1 and 2." in text
    assert numbers["left out"] == []
    (folders[3] / "validation" / f"{STEPS}.jsonl").write_bytes(
        (folders[0] / "validation" / f"{STEPS}.jsonl").read_bytes()
    )
    numbers, text = write(folders)
    assert [row["reason"] for row in numbers["left out"]] == ["was validated on different problems from x_baseline_s2"]
