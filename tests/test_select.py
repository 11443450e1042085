"""The sanity set: which problems are chosen from samples, at the demo's size, and what is refused."""

import json
import random

import pytest

from data_prep.benchmarks import BENCHMARK_SCHEMA, benchmark_row
from data_prep.check_rows import check_rows
from data_prep.dapo import content_id
from data_prep.demo import problems
from data_prep.rows import manifest_path, open_rows, read_manifest, row, write_rows
from data_prep.verify import verify
from eval.select import select
from reward.justrl import compute_score
from tests.test_dapo_input import command

META = {"model": "/home/somebody/models/m", "prompt": "training", "temperature": 1.0, "top_p": 1.0, "max_tokens": 64}


def write_samples(folder, task, rows, responses):
    """Write a samples file: for each row the responses of the same place."""
    folder.mkdir(exist_ok=True)
    lines = []
    for made, texts in zip(rows, responses, strict=True):
        record = {"task": task, "problem_id": made["extra_info"]["index"], "prompt": made["prompt"][0]["content"]}
        record["answer"] = made["reward_model"]["ground_truth"]
        lines += [json.dumps(record | {"sample": i, "seed": i, "response": text}) for i, text in enumerate(texts)]
    (folder / f"{task}.samples.jsonl").write_text("\n".join(lines) + "\n")
    (folder / f"{task}.meta.json").write_text(json.dumps(META | {"problem_count": len(rows)}))
    return folder


def answers(truth, correct, samples):
    return [rf"so \boxed{{{truth}}}"] * correct + [rf"so \boxed{{{truth}0}}"] * (samples - correct)


def training_rows(pairs):
    return [row("math_dapo", *pair, content_id(*pair), "train") for pair in pairs]


def sampled(tmp_path, counts, samples=10):
    """Write a training set of a problem for each count of correct responses, and its samples; return both folders."""
    rows = training_rows([(f"What is {i} + {i}?", str(2 * i)) for i in range(10, 10 + len(counts))])
    write_rows(tmp_path / "data" / "train.parquet", rows, {})
    texts = [answers(made["reward_model"]["ground_truth"], n, samples) for made, n in zip(rows, counts, strict=True)]
    return write_samples(tmp_path / "samples", "train", rows, texts), tmp_path / "data"


def chosen(path):
    return {made["extra_info"]["problem"] for made in open_rows(path).read().to_pylist()}


def test_both_ends_are_included(tmp_path):
    select(*sampled(tmp_path, [0, 1, 2, 5, 8, 9, 10]), 0.2, 0.8, output := tmp_path / "out" / "train.parquet")
    assert chosen(output) == {f"What is {i} + {i}?" for i in (12, 13, 14)}
    manifest = read_manifest(output)
    assert sorted(manifest["fractions"].values()) == [0.2, 0.5, 0.8]
    assert manifest["outcomes"] == {"kept": 3, "solved less often": 2, "solved more often": 2}
    assert manifest["source"] == "train"
    assert manifest["sampling"]["train"].items() >= {"model": "m", "temperature": 1.0, "prompt": "training"}.items()
    assert "somebody" not in json.dumps(manifest)


def test_the_demos_problems_are_chosen_in_the_training_format(tmp_path):
    """A model that solves each problem with a probability of its own, sampled on all of the demo's training set."""
    problems.write(tmp_path / "data")
    (tmp_path / "data" / "test.parquet").unlink()
    rows, rng = open_rows(tmp_path / "data" / "train.parquet").read().to_pylist(), random.Random(0)
    counts = [sum(rng.random() < skill for _ in range(8)) for skill in (rng.random() for _ in rows)]
    texts = [answers(made["reward_model"]["ground_truth"], n, 8) for made, n in zip(rows, counts, strict=True)]
    folder = write_samples(tmp_path / "samples", "train", rows, texts)
    select(folder, tmp_path / "data", 0.2, 0.8, output := tmp_path / "train.parquet")
    wanted = [made for made, count in zip(rows, counts, strict=True) if 2 <= count <= 6]
    assert len(rows) > 3000
    assert chosen(output) == {made["extra_info"]["problem"] for made in wanted}
    kept = {made["extra_info"]["problem"]: made for made in open_rows(output).read().to_pylist()}
    for made in wanted:
        same = kept[made["extra_info"]["problem"]]
        assert (same["prompt"], same["reward_model"]) == (made["prompt"], made["reward_model"])
    assert verify(output) == []
    assert check_rows(output, compute_score) == len(wanted), "a run would read it"


def test_the_training_reward_decides_and_not_the_graders(tmp_path):
    """For a grader `\\frac{2}{4}` is 1/2; training gives it -1, and could never bring the problem to 100 %."""
    rows = training_rows([("What is $1/2$?", r"\frac{1}{2}"), ("What is $2 - 1$?", "1")])
    write_rows(tmp_path / "data" / "train.parquet", rows, {})
    texts = [[r"\boxed{\frac{2}{4}}", r"\boxed{0.5}"], [r"\boxed{1}", r"\boxed{ 1 }"]]
    folder = write_samples(tmp_path / "samples", "train", rows, texts)
    select(folder, tmp_path / "data", 0.2, 0.8, output := tmp_path / "train.parquet")
    assert chosen(output) == {"What is $2 - 1$?"}


def test_copies_and_ground_truths_that_cannot_score_are_left_out(tmp_path):
    pairs = [("What is $1+1$?", "2"), ("What is $1 + 1$?", "2"), ("How long?", "8" * 200)]
    rows = [benchmark_row("mine", i, *pair, None) for i, pair in enumerate(pairs)]
    write_rows(tmp_path / "data" / "mine.parquet", rows, {}, schema=BENCHMARK_SCHEMA)
    texts = [answers(made["reward_model"]["ground_truth"], 1, 2) for made in rows]
    folder = write_samples(tmp_path / "samples", "mine", rows, texts)
    select(folder, tmp_path / "data", 0.2, 0.8, output := tmp_path / "train.parquet")
    outcomes = {"kept": 1, "copy of another problem": 1, "ground truth cannot score": 1}
    assert read_manifest(output)["outcomes"] == outcomes
    assert verify(output) == []


def test_samples_that_are_not_of_these_files_are_refused(tmp_path):
    folder, data = sampled(tmp_path, [5, 5])
    before = (data / "train.parquet").read_bytes()
    with pytest.raises(ValueError, match=r"train\.parquet: is the source too; choose another --output"):
        select(folder, data, 0.2, 0.8, data / "train.parquet")
    assert (data / "train.parquet").read_bytes() == before
    path = folder / "train.samples.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match=r"has \[9, 10\] samples per problem; run eval\.generate again"):
        select(folder, data, 0.2, 0.8, tmp_path / "out.parquet")
    path.write_text("\n".join(lines).replace("10 + 10", "10 + 11") + "\n")
    with pytest.raises(ValueError, match="is another problem in --bench; name what was sampled"):
        select(folder, data, 0.2, 0.8, tmp_path / "out.parquet")
    with pytest.raises(ValueError, match=r"absent: has no parquet file; prepare it"):
        select(folder, tmp_path / "absent", 0.2, 0.8, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_the_command_says_why_nothing_is_left(tmp_path):
    folder, data = sampled(tmp_path, [0, 0, 10])
    arguments = ("eval.select", folder, "--bench", data, "--output", tmp_path / "out" / "train.parquet")
    done = command(*arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no problem is solved 20% to 80% of the time: 2 solved less often, 1 solved more often" in done.stderr
    assert not (tmp_path / "out").exists()
    done = command(*arguments, "--between", "0.8", "0.2")
    assert (done.returncode, done.stderr) == (2, "eval.select: --between 0.8 0.2: the lower end comes first\n")


def test_half_a_sampling_is_refused_as_by_eval_grade(tmp_path):
    folder, data = sampled(tmp_path, [5, 5])
    meta, output = folder / "train.meta.json", tmp_path / "out.parquet"
    settings = json.loads(meta.read_text())
    for changed, message in (
        ({"samples": 20}, r"has 10 samples per problem of 20; run eval\.generate again"),
        ({"problem_count": 4}, r"has samples of 2 problems of 4; run eval\.generate again"),
    ):
        meta.write_text(json.dumps(settings | changed))
        with pytest.raises(ValueError, match=message):
            select(folder, data, 0.2, 0.8, output)
    assert not output.exists()
    meta.write_text(json.dumps(settings | {"samples": 10}))
    select(folder, data, 0.2, 0.8, output)


def test_only_what_it_made_is_overwritten(tmp_path):
    folder, data = sampled(tmp_path, [5, 5])
    other = tmp_path / "other" / "train.parquet"
    write_rows(other, training_rows([("What?", "4")]), {"source": "x"})
    before = other.read_bytes()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"other/train\.parquet: is there, and eval\.select did not make it; move"):
            select(folder, data, 0.2, 0.8, other)
        manifest_path(other).unlink(missing_ok=True)
    assert other.read_bytes() == before
    for name in ("train.sanity", "", "samples"):
        with pytest.raises(ValueError, match=r"the output must be a \.parquet file; choose another name"):
            select(folder, data, 0.2, 0.8, tmp_path / name)
    manifest_path(tmp_path / "mine.parquet").write_text("{}")
    with pytest.raises(ValueError, match=r"mine\.manifest\.json: is there, and eval\.select did not make it"):
        select(folder, data, 0.2, 0.8, tmp_path / "mine.parquet")
    manifest_path(tmp_path / "mine.parquet").unlink()
    for _ in range(2):
        select(folder, data, 0.2, 0.8, tmp_path / "mine.parquet")
