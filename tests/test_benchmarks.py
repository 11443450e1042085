"""The nine benchmarks: golden rows, every correction with its reference answer, and their sources."""

import json
import re
import shutil
from collections import Counter
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import benchmarks
from data_prep.benchmarks import PAPER_BENCHMARKS
from data_prep.reference_answers import corrected, corrections, parse
from data_prep.rows import open_rows, read_manifest
from data_prep.verify import verify
from reward import robust
from reward.answers import TYPES
from tests.conftest import ROOT
from tests.hub import local_hub
from tests.test_dapo_input import command

CASES = json.loads((ROOT / "tests" / "cases" / "reference_answers.json").read_text())


@pytest.fixture(scope="module")
def prepared(request, tmp_path_factory):
    """A folder with all nine, from the release's files."""
    folder = tmp_path_factory.mktemp("bench")
    source = ROOT.parent / "shared" / "data" / "bench"
    if not source.is_dir():
        pytest.skip("the real data is not beside this checkout (../shared/data)")
    benchmarks.prepare(str(source), folder, list(PAPER_BENCHMARKS))
    return folder


def rows_of(folder, task: str) -> list[dict]:
    return open_rows(folder / f"{task}.parquet").read().to_pylist()


def test_the_table_has_the_papers_benchmarks():
    assert [(task, b.problems, b.samples) for task, b in PAPER_BENCHMARKS.items()] == [
        *(("AIME24", 30, 32), ("AIME25", 30, 32), ("AMC23", 40, 32), ("MATH-500", 500, 4), ("Minerva", 272, 4)),
        *(("Olympiad-Bench", 674, 4), ("HMMT25", 30, 32), ("BRUMO25", 30, 32), ("CMIMC25", 40, 32)),
    ]
    assert all(len(benchmark.revision) == 40 for benchmark in PAPER_BENCHMARKS.values())
    assert "suite" not in benchmarks.Benchmark._field_defaults, "an entry that lacks it would join the paper's mean"


def test_golden_rows(prepared):
    rows = {row["extra_info"]["index"]: row for task in PAPER_BENCHMARKS for row in rows_of(prepared, task)}
    assert len(rows) == 1646
    assert {case["problem_id"].rsplit("-", 1)[0] for case in CASES} == set(PAPER_BENCHMARKS)
    for case in CASES:
        row = rows[case["problem_id"]]
        assert row["extra_info"]["released"] == case["released"]
        assert row["reward_model"]["ground_truth"] == case["ground_truth"]
        assert {key: value for key, value in row["extra_info"]["answer"].items() if value} == case["answer"]


def test_types_of_all_reference_answers(prepared):
    kinds = Counter(row["extra_info"]["answer"]["type"] for task in PAPER_BENCHMARKS for row in rows_of(prepared, task))
    assert dict(kinds) == {
        **{"integer": 914, "expression": 225, "rational": 168, "decimal": 80, "set": 78, "scientific": 61},
        **{"tuple": 43, "equation": 39, "interval": 17, "text": 8, "matrix": 7, "based": 6},
    }


def test_every_prepared_file_holds_and_every_change_is_listed(prepared):
    for task in PAPER_BENCHMARKS:
        assert verify(prepared / f"{task}.parquet") == []
        manifest = read_manifest(prepared / f"{task}.parquet")
        assert manifest["problems_as_released"]
        listed = {change["problem_id"]: change for change in manifest["changes"]}
        assert all(change["reason"] for change in listed.values())
        for row in rows_of(prepared, task):
            extra = row["extra_info"]
            changed = row["reward_model"]["ground_truth"] != extra["released"] or extra["correction"]
            assert bool(changed) == (extra["index"] in listed)


def test_every_correction_was_applied(prepared):
    overlay = corrections()
    applied = {
        row["extra_info"]["index"]: row["extra_info"]["correction"]
        for task in PAPER_BENCHMARKS
        for row in rows_of(prepared, task)
        if row["extra_info"]["correction"]
    }
    assert applied == {key: correction.reason for key, correction in overlay.items()}


def test_a_correction_for_another_answer_is_refused(tmp_path, shared_data):
    rows = pq.ParquetFile(shared_data / "bench" / "CMIMC25" / "test.parquet").read().to_pylist()
    rows[29]["answer"] = "9.95"
    (tmp_path / "CMIMC25").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "CMIMC25" / "test.parquet")
    with pytest.raises(ValueError, match=r"CMIMC25-29: the reference answer is '9.95', the correction is for '9.94'"):
        benchmarks.prepare(str(tmp_path), tmp_path / "out", ["CMIMC25"])


def test_the_type_of_a_correction_decides():
    correction = corrections()["MATH-500-356"]
    answer, parsed = corrected(correction.released, "MATH-500", correction)
    assert (answer, parsed.type) == (r"(-\sqrt{3}, \sqrt{3})", "interval")
    outcomes = {
        response: robust.judge(rf"\boxed{{{response}}}", answer, asdict(parsed))[0]
        for response in (
            r"-\sqrt{3}<x<\sqrt{3}",
            r"\sqrt3>x>-\sqrt3",
            r"-\sqrt{3}\le x<\sqrt{3}",
            r"-\sqrt{3},\sqrt{3}",
        )
    }
    assert list(outcomes.values()) == ["equivalent", "equivalent", "wrong", "wrong"], outcomes


def test_files_prepared_before_are_read_and_verify_says_how_to_remake_them(prepared, tmp_path):
    rows = rows_of(prepared, "AIME24")
    for row in rows:
        kept = {"type": row["extra_info"]["answer"]["type"], "value": "1", "tolerance": ""}
        row["extra_info"]["answer"] = kept | {"parts": [], "unit": "", "base": 0, "asked": 0}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "AIME24.parquet")
    shutil.copy(prepared / "AIME24.manifest.json", tmp_path)
    assert len(rows) == len(benchmarks.read_problems(tmp_path)["AIME24"]) == 30
    assert "prepare it again" in verify(tmp_path / "AIME24.parquet")[-1]


@given(st.text(max_size=60))
def test_any_answer_has_a_type(answer):
    assert parse(answer).type in TYPES


@given(st.integers(-(10**30), 10**30))
def test_integers_of_any_size(number):
    for text in (str(number), f"${number}$", rf"\boxed{{{number}}}"):
        assert (parse(text).type, parse(text).value) == ("integer", str(number))
    if number >= 1000:
        assert parse(f"{number:,}").value == str(number)


def aime25(folder) -> list[dict]:
    rows = pq.ParquetFile(folder / "bench" / "AIME25" / "test.parquet").read().to_pylist()
    return [
        {"problem": row["prompt"][0]["content"], "answer": row["reward_model"]["ground_truth"], "id": str(i)}
        for i, row in enumerate(rows)
    ]


def test_from_the_hub_at_the_pinned_commit(tmp_path, shared_data):
    lines = "".join(json.dumps(row) + "\n" for row in aime25(shared_data)).encode()
    benchmark = PAPER_BENCHMARKS["AIME25"]
    with local_hub({(benchmark.hub_id, benchmark.revision): {benchmark.file: lines, "README.md": b""}}) as environment:
        arguments = ("data_prep.benchmarks", "--source", "hub", "--output", tmp_path / "out", "--tasks", "AIME25")
        done = command(*arguments, env=environment | {"HF_HOME": str(tmp_path / "hub")})
        assert done.returncode == 0, done.stderr
        arguments = ("data_prep.benchmarks", "--output", tmp_path / "out", "--tasks", "AIME24")
        other = command(*arguments, env=environment | {"HF_HOME": str(tmp_path / "hub")})
        assert other.returncode == 2
        assert "math-ai/aime24: the hub gave no data" in other.stderr
    manifest = read_manifest(tmp_path / "out" / "AIME25.parquet")
    assert (manifest["source"], manifest["revision"]) == (benchmark.hub_id, benchmark.revision)
    assert manifest["problems_as_released"]
    benchmarks.prepare(str(shared_data / "bench"), tmp_path / "local", ["AIME25"])
    assert (tmp_path / "out" / "AIME25.parquet").read_bytes() == (tmp_path / "local" / "AIME25.parquet").read_bytes()


def test_another_order_is_said(tmp_path, shared_data, capsys):
    rows = pq.ParquetFile(shared_data / "bench" / "BRUMO25" / "test.parquet").read().to_pylist()
    (tmp_path / "BRUMO25").mkdir()
    pq.write_table(pa.Table.from_pylist(rows[::-1]), tmp_path / "BRUMO25" / "test.parquet")
    benchmarks.prepare(str(tmp_path), tmp_path / "out", ["BRUMO25"])
    assert "ids are not comparable" in capsys.readouterr().out


def verl_rows(folder, change) -> list[tuple[str, str]]:
    """Write AIME24 as released, each row changed, and read it."""
    rows = pq.ParquetFile(folder / "bench" / "AIME24" / "test.parquet").read().to_pylist()
    for row in rows:
        row |= change(row["prompt"][0]["content"], row["reward_model"]["ground_truth"])
    return rows


@pytest.mark.parametrize(
    "change",
    [
        lambda text, answer: {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": text}]},
        lambda text, answer: {"reward_model": {"ground_truth": int(re.sub(r"\D", "", answer))}},
    ],
)
def test_a_system_message_and_an_integer_are_read(tmp_path, shared_data, change):
    pq.write_table(pa.Table.from_pylist(verl_rows(shared_data, change)), tmp_path / "a.parquet")
    as_released = verl_rows(shared_data, lambda text, answer: {})
    found = benchmarks.read_pairs(tmp_path / "a.parquet", "AIME24")
    assert [problem for problem, _ in found] == [row["prompt"][0]["content"] for row in as_released]
    assert "204" in found[0][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text, answer: {"prompt": [{"role": "user", "content": text}] * 2}, "not exactly one user message"),
        (lambda text, answer: {"prompt": [{"role": "assistant", "content": text}]}, "not exactly one user message"),
        (lambda text, answer: {"prompt": [{"role": "user", "content": None}]}, "row 0: problem and answer are to be"),
        (lambda text, answer: {"reward_model": {"ground_truth": 204.0}}, r"row 0: .*204\.0"),
        (lambda text, answer: {"reward_model": {"ground_truth": True}}, "row 0: .*True"),
        (lambda text, answer: {"reward_model": {"ground_truth": None}}, "row 0: .*None"),
    ],
)
def test_another_prompt_and_another_answer_are_refused(tmp_path, shared_data, change, message):
    pq.write_table(pa.Table.from_pylist(verl_rows(shared_data, change)), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=rf"a\.parquet: .*{message}"):
        benchmarks.read_pairs(tmp_path / "a.parquet", "AIME24")


def test_wrong_sources_are_one_line(tmp_path, shared_data):
    def refused(words: str, task: str = "AIME24") -> None:
        with pytest.raises(ValueError, match=words) as caught:
            benchmarks.prepare(str(tmp_path), tmp_path / "out", [task])
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    path = tmp_path / "AIME24" / "test.parquet"
    refused("unknown task 'AIME27'", "AIME27")
    refused("no such file")
    path.parent.mkdir()
    shutil.copy(shared_data / "bench" / "AIME25" / "test.parquet", path)
    path.write_bytes(path.read_bytes()[:-30])
    refused("is it truncated")
    pq.write_table(pa.table({"question": ["q"]}), path)
    refused("lacks column 'solution'")
    pq.write_table(pa.table({"problem": ["q"], "solution": ["1"]}), path)
    refused("has 1 problems, and AIME24 has 30")
    pq.write_table(pa.table({"prompt": ["q"], "reward_model": ["1"]}), path)
    refused("another type")
