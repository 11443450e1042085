"""Benchmarks beside the nine of the paper: those of 2026, your own, and how grades and the report group them."""

import argparse
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.command import first_line
from data_prep import benchmarks, gsm8k
from data_prep.benchmarks import BENCHMARKS, FOR_ADD, PAPER_BENCHMARKS
from data_prep.rows import open_rows, read_manifest
from data_prep.source import locate
from data_prep.verify import verify
from eval import report
from eval.grade import grade_folder
from eval.published import beside_published, published_row
from eval.tasks import task_files
from tests.hub import local_hub
from tests.test_dapo import PAIRS, prepare, write_raw
from tests.test_dapo_input import command
from tests.test_eval import write_samples
from tests.test_gsm8k import TEST, TRAIN, write
from tests.test_report import evaluation, make_run, table, task_scores

ROWS = [
    {"problem": "What is the greatest prime below one hundred?", "answer": 97, "level": 5},
    {"problem": " Simplify $2/4$. ", "answer": r"$\frac{1}{2}$", "level": 1},
    {"problem": "Name both roots of $x^2 = 4$.", "answer": "-2, 2", "level": 5},
]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def add(source, output, name="mine", **options):
    """Add a benchmark as the command does, and return its rows and manifest."""
    defaults = dict.fromkeys(FOR_ADD) | {"add": name, "source": str(source), "output": output}
    benchmarks.add(argparse.Namespace(**defaults | options))
    path = output / f"{name}.parquet"
    return open_rows(path).read().to_pylist(), read_manifest(path)


def parquet(rows) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def of_2026(task, count):
    """Rows of the hub's shape; AIME's answers are integers."""
    for i in range(count):
        row = {"problem_idx": i + 1, "answer": i if task == "AIME26" else rf"\frac{{{i}}}{{7}}"}
        yield row | ({} if task == "AIME26" else {"problem_type": ["Algebra"]}) | {"problem": f"What is {i}?"}


def test_2026s_are_read_from_the_hub_at_pinned_commits(tmp_path):
    tasks = {task: benchmark for task, benchmark in BENCHMARKS.items() if benchmark.suite == "2026"}
    assert {task: b.problems for task, b in tasks.items()} == {"AIME26": 30, "HMMT26": 33}
    bodies = {task: parquet([*of_2026(task, benchmark.problems)]) for task, benchmark in tasks.items()}
    hub = {(b.hub_id, b.revision): {b.file: bodies[task], "README.md": b""} for task, b in tasks.items()}
    arguments = ("data_prep.benchmarks", "--suite", "2026", "--output", tmp_path / "out")
    with local_hub(hub) as environment:
        done = command(*arguments, env=environment | {"HF_HOME": str(tmp_path / "hub")})
    assert done.returncode == 0, done.stderr
    assert set(benchmarks.read_problems(tmp_path / "out")) == {"AIME26", "HMMT26"}
    for task, benchmark in tasks.items():
        path = tmp_path / "out" / f"{task}.parquet"
        manifest = read_manifest(path)
        assert (manifest["source"], manifest["revision"]) == (benchmark.hub_id, benchmark.revision)
        assert verify(path) == []
    assert open_rows(tmp_path / "out" / "AIME26.parquet").read().to_pylist()[7]["reward_model"]["ground_truth"] == "7"


def test_a_difficulty_of_a_hub_data_set_is_one_command(tmp_path):
    hub = {
        ("HuggingFaceH4/MATH-500", "c" * 40): {
            "test.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
            "README.md": b"",
        }
    }
    arguments = ("--add", "MATH-5", "--source", "HuggingFaceH4/MATH-500", "--revision", "c" * 40, "--where", "level=5")
    with local_hub(hub) as environment:
        environment |= {"HF_HOME": str(tmp_path / "hub")}
        done = command("data_prep.benchmarks", *arguments, "--output", tmp_path / "bench", env=environment)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "bench" / "MATH-5.parquet")
    assert (manifest["source"], manifest["revision"], manifest["rows_out"]) == ("HuggingFaceH4/MATH-500", "c" * 40, 2)


def test_a_hub_data_set_of_several_files_is_refused_before_it_is_downloaded(tmp_path):
    files = {f"{name}.jsonl": "\n".join(map(json.dumps, ROWS)).encode() for name in ("test", "train")}
    source = ("--source", "some/problems", "--revision", "c" * 40)
    arguments = ("data_prep.benchmarks", "--add", "mine", *source, "--output", tmp_path / "bench")
    with local_hub({("some/problems", "c" * 40): files}) as environment:
        environment |= {"HF_HOME": str(tmp_path / "hub")}
        done = command(*arguments, env=environment)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "some/problems: has 2 files: test.jsonl, train.jsonl; name one by --files" in done.stderr
        assert not [*tmp_path.rglob("*.jsonl")]
        assert command(*arguments, "--files", "test*", env=environment).returncode == 0
    assert read_manifest(tmp_path / "bench" / "mine.parquet")["rows_out"] == 3


def test_2026s_with_a_row_too_few_are_refused(tmp_path):
    (tmp_path / "HMMT26").mkdir()
    (tmp_path / "HMMT26" / "test.parquet").write_bytes(parquet([*of_2026("HMMT26", 32)]))
    with pytest.raises(ValueError, match="has 32 problems, and HMMT26 has 33; is it whole"):
        benchmarks.prepare(str(tmp_path), tmp_path / "out", ["HMMT26"])
    assert not (tmp_path / "out").exists()


def test_a_benchmark_of_your_own_is_prepared_as_those_of_the_paper(tmp_path):
    rows, manifest = add(write_lines(tmp_path / "mine.jsonl", ROWS), tmp_path / "bench")
    assert [row["extra_info"]["index"] for row in rows] == ["mine-0", "mine-1", "mine-2"]
    assert [row["reward_model"]["ground_truth"] for row in rows] == ["97", r"\frac{1}{2}", "-2, 2"]
    assert [row["extra_info"]["answer"]["type"] for row in rows] == ["integer", "rational", "set"]
    assert rows[1]["extra_info"]["problem"] == "Simplify $2/4$."
    assert (manifest["source"], manifest["rows_in"], manifest["suite"]) == ("mine.jsonl", 3, "your own")
    assert list(manifest["sha256_in"]) == ["mine.jsonl"]
    assert [change["problem_id"] for change in manifest["changes"]] == ["mine-1"]
    assert verify(tmp_path / "bench" / "mine.parquet") == []
    assert list(task_files(tmp_path / "bench", None)) == ["mine"], "eval.generate finds it"


def test_parquet_other_columns_and_a_subset_by_difficulty(tmp_path):
    rows = [{"q": row["problem"], "a": str(row["answer"]), "level": row["level"]} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "raw.parquet")
    made, manifest = add(tmp_path / "raw.parquet", tmp_path / "bench", "M-5", problem="q", answer="a", where="level=5")
    assert [row["reward_model"]["ground_truth"] for row in made] == ["97", "-2, 2"]
    assert (manifest["rows_in"], manifest["rows_out"], manifest["where"]) == (3, 2, "level=5")
    assert verify(tmp_path / "bench" / "M-5.parquet") == []
    write_lines(tmp_path / "mine.jsonl", [row | {"ok": ok} for row, ok in zip(ROWS, (True, False, None), strict=True)])
    for where, truth in (("ok=true", "97"), ("ok=false", r"\frac{1}{2}"), ("ok=null", "-2, 2")):
        (made,), _ = add(tmp_path / "mine.jsonl", tmp_path / "bench", where=where)
        assert made["reward_model"]["ground_truth"] == truth


def test_gsm8k_becomes_a_benchmark_without_its_instruction(tmp_path):
    gsm8k.prepare(locate(str(write(tmp_path / "raw", train=TRAIN, test=TEST)), None, "*"), tmp_path / "gsm8k", [])
    (row,), _ = add(tmp_path / "gsm8k" / "GSM8K.parquet", tmp_path / "bench", "GSM8K")
    assert (row["extra_info"]["problem"], row["reward_model"]["ground_truth"]) == (TEST[0][0], "72")
    assert verify(tmp_path / "bench" / "GSM8K.parquet") == []
    assert list(benchmarks.read_problems(tmp_path / "gsm8k")) == ["GSM8K"], "a training set is no benchmark"


def test_your_own_is_looked_for_in_the_training_set(tmp_path):
    add(write_lines(tmp_path / "mine.jsonl", ROWS), tmp_path / "bench")
    source = write_raw(tmp_path / "raw.parquet", [*PAIRS, (ROWS[0]["problem"], "97")])
    found = prepare(source, tmp_path / "train.parquet", benchmarks=tmp_path / "bench")["contamination"]["mine"]
    assert (found["exact"], found["problem_ids"]) == (1, ["mine-0"])


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (ROWS, {"problem": "question"}, "row 0 lacks column 'question', it has problem, answer, level; --problem and"),
        ([*ROWS, {"problem": "Why?"}], {}, "row 3 lacks column 'answer', it has problem; --problem and --answer name"),
        ([*ROWS, {"problem": " ", "answer": "1"}], {}, "row 3: has no problem or no answer: '1'"),
        ([*ROWS, {"problem": "Why?", "answer": "$ $"}], {}, "row 3: has no problem or no answer: '$ $'"),
        (
            [{"problem": "Why?", "answer": 0.5}],
            {},
            "row 0: problem and answer are to be text, or the answer an integer",
        ),
        ([{"problem": "Why?", "answer": True}], {}, "row 0: problem and answer are to be text, or the answer an int"),
        ([{"problem": "Why?", "answer": ["1", "2"]}], {}, "row 0: problem and answer are to be text, or the answer an"),
        ([{"problem": 7, "answer": "1"}], {}, "row 0: a column has another type than text"),
        (ROWS, {"where": "level=6"}, "no row has level=6; level is 1, 5"),
        (ROWS, {"where": "subject=Algebra"}, "give COLUMN=VALUE with a column that all rows have, of problem, answer"),
        (ROWS, {"where": "level"}, "give COLUMN=VALUE"),
        (
            [ROWS[0] | {"ok": True}, ROWS[1] | {"ok": None}],
            {"where": "ok=None"},
            "no row has ok=None; ok is null, true",
        ),
        (ROWS, {"files": "*.zzz"}, "mine.jsonl is a file, not a folder of files; leave it out"),
        ([], {}, "mine.jsonl: has no rows"),
        (ROWS, {"name": "aime24"}, "--add aime24: benchmarks.json has it; prepare it with --tasks, or choose another"),
        (ROWS, {"name": "Mean"}, "--add Mean: reports have a mean of benchmarks; choose another name"),
        (ROWS, {"name": "../mine"}, "--add ../mine: not a plain name"),
        (ROWS, {"name": "a,b"}, "--add a,b: not a plain name"),
        (ROWS, {"name": ""}, "--add : not a plain name"),
    ],
)
def test_what_is_no_benchmark_is_refused_in_one_line(tmp_path, rows, options, message):
    with pytest.raises(ValueError) as raised:
        add(write_lines(tmp_path / "mine.jsonl", rows), tmp_path / "bench", **options)
    assert message in first_line(raised.value)
    assert not (tmp_path / "bench").exists()


def test_sources_that_cannot_be_read_are_one_line(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "bad.jsonl").write_text("[1]\n")
    (tmp_path / "two").mkdir()
    for name in ("a", "b"):
        write_lines(tmp_path / "two" / f"{name}.jsonl", ROWS)
    words = {"bad.parquet": "is it truncated", "bad.jsonl": "line 1: is no JSON object", "no.jsonl": "no such file"}
    words |= {"mine.csv": "neither a .parquet or .jsonl", "two": "has 2 files: a.jsonl, b"}
    for name, message in words.items():
        with pytest.raises(ValueError) as raised:
            add(tmp_path / name, tmp_path / "bench")
        assert message in first_line(raised.value)
    rows, _ = add(tmp_path / "two", tmp_path / "bench", files="a.*")
    assert len(rows) == 3


def test_adding_replaces_only_what_it_made_and_names_copies(tmp_path, capsys):
    source = write_lines(tmp_path / "mine.jsonl", ROWS)
    gsm8k.prepare(locate(str(write(tmp_path / "raw", train=TRAIN, test=TEST)), None, "*"), tmp_path / "bench", [])
    before = (tmp_path / "bench" / "train.parquet").read_bytes()
    with pytest.raises(ValueError, match=r"train\.parquet: is there, and data_prep\.benchmarks did not make it; move"):
        add(source, tmp_path / "bench", "train")
    assert (tmp_path / "bench" / "train.parquet").read_bytes() == before
    for rows in (ROWS[:2], ROWS):
        made, _ = add(write_lines(source, rows), tmp_path / "bench")
        assert len(made) == len(rows)
    with pytest.raises(ValueError, match=r"mine\.parquet: is the source too; choose another --output"):
        add(tmp_path / "bench" / "mine.parquet", tmp_path / "bench", where="data_source=mine")
    add(write_lines(source, [*ROWS, ROWS[1] | {"answer": "2"}]), tmp_path / "bench", "copies")
    assert "2 rows share their problem with another row: copies-1, copies-3\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--where", "level=5", "--problem", "q"), "--problem, --where: only together with --add NAME"),
        (("--add", "mine"), "--add needs --source"),
        (("--add", "mine", "--source", "x.jsonl", "--problem", ""), "argument --problem: is empty; give a value, or"),
        (("--add", "mine", "--source", "x.jsonl", "--tasks", "AIME24"), "takes no --tasks"),
        (("--suite", "2027"), "invalid choice: '2027'"),
        (("--suite", "2026", "--tasks", "AIME24"), "--suite: not together with --tasks or --add"),
        (("--suite", "paper", "--add", "mine", "--source", "x.jsonl"), "--suite: not together with --tasks or --add"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("sys.argv", ["benchmarks", "--output", str(tmp_path / "out"), *arguments])
    with pytest.raises(SystemExit, match="2"):
        benchmarks.main()
    assert message in capsys.readouterr().err


def test_the_mean_is_of_the_papers_benchmarks_whatever_else_was_graded(tmp_path):
    write_samples(tmp_path, "AIME24", [r"\boxed{204}"] * 2, answer=r"\boxed{204}")
    write_samples(tmp_path, "AMC23", ["no"] * 2)
    write_samples(tmp_path, "mine", ["no"] * 2)
    write_samples(tmp_path, "AIME26", ["no"] * 2)
    scores = grade_folder(tmp_path)
    assert list(scores["tasks"]) == ["AIME24", "AMC23", "AIME26", "mine"]
    assert scores["mean"] == scores["means"]["strict-typed"]["avg"] == 0.5


EVERY = {"mine": [1, 1], "theirs": [0, 1], "HMMT26": [0, 0], "AIME24": [0, 1, 1, 1], "AIME26": [0, 1], "AMC23": [1, 0]}


def test_the_report_has_a_mean_for_each_suite(tmp_path, no_pictures):
    folder = evaluation(tmp_path / "a", "a", EVERY)
    report.write([folder])
    rows = {name.split(" (avg")[0]: row["a"]["value"] for name, row in table(folder, "scores").items()}
    assert list(rows.items()) == [
        *(("AIME24", 0.75), ("AMC23", 0.5), ("mean of 2", 0.625)),
        *(("AIME26", 0.5), ("HMMT26", 0), ("mean of the 2 benchmarks of 2026", 0.25)),
        *(("mine", 1), ("theirs", 0.5), ("mean of the 2 benchmarks of your own", 0.75)),
    ]


def test_a_suite_is_reported_alone(tmp_path, no_pictures):
    folder = evaluation(tmp_path / "a", "a", EVERY)
    for suite, tasks in (("paper", ["AIME24", "AMC23"]), ("2026", ["AIME26", "HMMT26"])):
        report.write([folder], suite=suite)
        assert [name.split(" (avg")[0] for name in table(folder, "scores")] == [*tasks, "mean of 2"]
        assert {*json.loads((folder / "report.json").read_text())["evaluations"]["a"]["tasks"]} == {*tasks}
    other = evaluation(tmp_path / "b", "b", {"mine": [0, 1]})
    with pytest.raises(ValueError, match="--suite paper: b has none of its benchmarks, but mine"):
        report.write([other], suite="paper")


def test_the_main_score_is_the_mean_of_the_papers_benchmarks(tmp_path, no_pictures):
    run = make_run(tmp_path)
    for name, last in (("base", 0), ("step_3", 1)):
        evaluation(run / "eval" / name, "m", {"AIME24": [0, last], "AMC23": [0, last], "mine": [1, 1 - last]})
    text = (report.write([run]) / "report.md").read_text()
    assert "base on the mean of 2: 50.0 percent correct against 0.0, a difference of +50.0 [" in text


def test_the_published_mean_is_compared_with_the_nine_alone():
    sizes = {task: (benchmark.problems, benchmark.samples) for task, benchmark in BENCHMARKS.items()}
    tasks = {task: task_scores(task, np.full(problems, 0.5), samples) for task, (problems, samples) in sizes.items()}
    tasks["AIME26"] = task_scores("AIME26", np.ones(30), 32)
    paper = published_row("JustRL-DeepSeek-1.5B")
    rows = [row for row in beside_published(tasks, paper).rows if row["grader"] == "official"]
    assert [row["benchmark"] for row in rows] == [*PAPER_BENCHMARKS, "mean"]
    assert (rows[-1]["ours"], rows[-1]["published"]) == (0.5, paper["mean"])
