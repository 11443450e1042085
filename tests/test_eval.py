"""Seeds, files of samples, grades and scores, on known answers."""

import json
from pathlib import Path

import pytest

from common.files import digest
from common.json_lines import drop_damaged
from common.models import model_digest
from data_prep.benchmarks import BENCHMARKS, PAPER_BENCHMARKS, benchmark_row, read_pairs
from eval import judge, official, typed
from eval.grade import grade_folder
from eval.samples import read_samples, sample_files
from eval.tasks import check_fingerprint, sample_seed, wanted_samples


def test_seeds_depend_on_each_argument_and_nothing_else():
    assert sample_seed(0, "AIME24", "AIME24-0", 0) == sample_seed(0, "AIME24", "AIME24-0", 0)
    seeds = {sample_seed(b, t, p, s) for b in (0, 1) for t in ("a", "b") for p in ("0", "1") for s in range(32)}
    assert len(seeds) == 256
    assert all(0 <= seed < 2**31 for seed in seeds)


def write_samples(folder, task, responses, samples=2, answer="4"):
    """Write a samples file as eval.generate does, and its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{task}.samples.jsonl", "w") as file:
        for i, text in enumerate(responses):
            record = {"task": task, "problem_id": f"{task}-{i // samples}", "sample": i % samples, "seed": i}
            record |= {"prompt": "p", "answer": answer, "response": text, "tokens": 5 + i, "finish_reason": "stop"}
            file.write(json.dumps(record) + "\n")
    count = -(-len(responses) // samples)
    settings = {"model": "m", "problem_count": count, "prompt": "evaluation", "temperature": 0.7, "top_p": 0.9}
    (folder / f"{task}.meta.json").write_text(json.dumps(settings | {"max_tokens": 31744}))


def test_grading_keeps_two_tracks_and_says_why(tmp_path):
    correct, half, several = r"\boxed{4}", r"\boxed{\frac{8}{2}}", r"\boxed{4 \text{ or } 5}"
    write_samples(tmp_path, "demo", [correct, r"\boxed{5}", "no", half, r"\boxed{x=4}", several])
    scores = grade_folder(tmp_path)
    task = scores["tasks"]["demo"]
    assert (task["problems"], task["samples"], task["no_box"], task["cut_off"]) == (3, 2, 1 / 6, 0)
    assert task["tracks"]["official"]["per_problem"] == {"demo-0": 0.5, "demo-1": 0, "demo-2": 1}, "it drops text"
    assert task["tracks"]["strict-typed"]["per_problem"] == {"demo-0": 0.5, "demo-1": 0.5, "demo-2": 0.5}
    assert (scores["track"], scores["mean"], task["avg"]) == ("official", 0.5, 0.5)
    assert scores["means"]["strict-typed"]["avg"] == 0.5
    assert scores["judge"] is None
    lines = [json.loads(line) for line in (tmp_path / "demo.grades.jsonl").open()]
    assert [line["reason"] for line in lines] == ["match", "wrong", "no_box", "wrong", "match", "match"]
    assert [line["typed_reason"] for line in lines] == ["match", "wrong", "no_box", "equivalent", "equivalent", "wrong"]
    assert task["tokens"]["mean"] == 7.5
    assert sum(task["tokens"]["right"]) == 3


def test_the_second_grading_is_looked_up(tmp_path, monkeypatch):
    write_samples(tmp_path, "demo", [r"\boxed{4}", r"\boxed{5}"])
    first = grade_folder(tmp_path)

    def never(*arguments):
        raise AssertionError("graded again")

    monkeypatch.setattr(official, "grade", never)
    monkeypatch.setattr(typed, "grade", never)
    assert grade_folder(tmp_path) == first
    monkeypatch.setattr(official, "VERSION", 0)
    with pytest.raises(AssertionError, match="graded again"):
        grade_folder(tmp_path)


def test_incomplete_samples_are_refused(tmp_path):
    write_samples(tmp_path, "demo", [r"\boxed{4}", r"\boxed{5}", "no"])
    with pytest.raises(ValueError, match=r"between 1 and 2 samples, the fewest has demo-1; run eval\.generate again"):
        grade_folder(tmp_path)
    with pytest.raises(ValueError, match=r"has no \*\.samples\.jsonl"):
        sample_files(tmp_path / "nothing")


def test_truncated_lines_are_left_out_and_dropped(tmp_path, capsys):
    write_samples(tmp_path, "t", ["a", "b"])
    path = tmp_path / "t.samples.jsonl"
    whole = path.read_text()
    path.write_text(whole + whole[:30])
    assert len(read_samples(path)) == 2
    assert "line 3: is truncated; left out" in capsys.readouterr().err
    assert [line.number for line in drop_damaged(path)] == [3]
    assert path.read_text() == whole
    path.write_text(whole.rstrip("\n"))
    assert drop_damaged(path) == []
    assert path.read_text() == whole, "what is appended next starts a line of its own"


def test_duplicate_and_foreign_lines_are_refused(tmp_path):
    write_samples(tmp_path, "t", ["a", "b"])
    path = tmp_path / "t.samples.jsonl"
    path.write_text(path.read_text() * 2)
    with pytest.raises(ValueError, match="sample 0 of problem t-0 is there 2 times"):
        read_samples(path)
    write_samples(tmp_path, "t", ["a", "b"])
    path.write_text(path.read_text().replace('"answer": "4"', '"answer": "5"', 1))
    with pytest.raises(ValueError, match=r"t\.samples\.jsonl: 't-0' has two answers, '[45]' and '[45]'; keep one"):
        read_samples(path)
    path.write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match="line 1: lacks 'task'"):
        read_samples(path)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="line 1: is no JSON object; is it a samples file"):
        read_samples(path)


def test_released_files_are_read(tmp_path, monkeypatch):
    path = tmp_path / "aime24_t0.7_p0.9_n2-MNT31744.jsonl"
    monkeypatch.setitem(BENCHMARKS, "AIME24", BENCHMARKS["AIME24"]._replace(problems=2))
    overlay = [(0, 7, r"\boxed{204}"), (1, 7, r"\boxed{113}"), (0, 8, "no"), (1, 8, r"\boxed{113}.")]
    lines = [{"example_id": i, "prompt": "p", "answer": "204" if i == 0 else "113"} for i, _, _ in overlay]
    lines = [line | {"seed": seed, "response": text} for line, (_, seed, text) in zip(lines, overlay, strict=True)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert sample_files(tmp_path) == {"AIME24": path}
    records = read_samples(path, "AIME24")
    assert [(r["problem_id"], r["sample"]) for r in records] == [
        ("AIME24-0", 0),
        ("AIME24-1", 0),
        ("AIME24-0", 1),
        ("AIME24-1", 1),
    ]
    scores = grade_folder(tmp_path)
    assert scores["model"] == tmp_path.name
    assert scores["tasks"]["AIME24"]["tracks"]["official"]["per_problem"] == {"AIME24-0": 0.5, "AIME24-1": 1}
    assert (scores["tasks"]["AIME24"]["tokens"], scores["tasks"]["AIME24"]["cut_off"]) == (None, None)
    path.write_text(path.read_text() + json.dumps(lines[0]) + "\n")
    with pytest.raises(ValueError, match="sample 7 of problem AIME24-0 is there 2 times"):
        read_samples(path, "AIME24")
    path.with_name("aime24_t0.1_p0.9_n2-MNT31744.jsonl").write_text("")
    with pytest.raises(ValueError, match="are both of AIME24; keep one"):
        sample_files(tmp_path)


def test_samples_of_too_few_problems_are_refused(tmp_path):
    """As after a request that failed: the mean over the others would be another benchmark's."""
    write_samples(tmp_path, "t", [r"\boxed{4}"] * 3, samples=1)
    path = tmp_path / "t.samples.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(ValueError, match=r"has samples of 2 problems of 3; run eval\.generate again"):
        grade_folder(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"answer": 4}, "answer: expected type string, got 4"),
        ({"response": None}, "response: .* got None"),
        ({"prompt": [1]}, "prompt: "),
        ({"seed": [1]}, "seed: "),
        ({"sample": -1}, "sample: "),
        ({"finish_reason": {}}, "finish_reason: "),
        *(({"tokens": value}, "tokens: ") for value in (float("nan"), float("inf"), "12", -1, 1.5, 3.0, True, 10**30)),
    ],
)
def test_what_is_of_another_type_is_refused_by_file_and_line(tmp_path, changed, message):
    write_samples(tmp_path, "t", ["a"], samples=1)
    path = tmp_path / "t.samples.jsonl"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed) + "\n")
    with pytest.raises(ValueError, match=rf"t\.samples\.jsonl, line 1: {message}"):
        read_samples(path)


def test_half_a_character_survives_the_file(tmp_path):
    write_samples(tmp_path, "t", ["\ud83d \\boxed{4\ud83d}"], samples=1)
    (record,) = read_samples(tmp_path / "t.samples.jsonl")
    assert record["response"].startswith("\ud83d")
    assert grade_folder(tmp_path)["tasks"]["t"]["avg"] == 0


def test_samples_of_other_settings_are_not_mixed(tmp_path):
    settings = {"model": "m", "revision": None, "files": None, "endpoint": False, "problems": "d", "problem_count": 1}
    settings |= {"prompt": "training", "temperature": 0.7, "top_p": 0.9, "max_tokens": 8, "base_seed": 0}
    path = tmp_path / "t.meta.json"
    with pytest.raises(ValueError, match="missing or damaged"):
        check_fingerprint(path, settings)
    path.write_text(json.dumps(settings))
    check_fingerprint(path, settings)
    with pytest.raises(ValueError, match=r"made with temperature=0\.7, not 1\.0"):
        check_fingerprint(path, settings | {"temperature": 1.0})


def test_a_folder_with_another_tokenizer_is_another_model(tmp_path):
    for name in ("model.safetensors", "tokenizer.json", "README.md"):
        (tmp_path / name).write_text("1")
    before = model_digest(str(tmp_path))
    (tmp_path / "README.md").write_text("2")
    assert model_digest(str(tmp_path)) == before
    (tmp_path / "tokenizer.json").write_text("2")
    assert model_digest(str(tmp_path)) != before
    assert model_digest("Qwen/Qwen2.5-1.5B") is None


def released_answers(folder: Path) -> list[tuple[str, str, str]]:
    """Return task, problem id and released reference answer of every benchmark problem."""
    return [
        (task, f"{task}-{index}", released)
        for task in PAPER_BENCHMARKS
        for index, (_, released) in enumerate(read_pairs(folder / "bench" / task / "test.parquet", task))
    ]


# Some no response can match: strict-typed reads them, but math-verify cannot, and only the same text matches.
def test_every_reference_answer_is_correct_on_the_strict_typed_track(shared_data):
    for task, problem_id, released in released_answers(shared_data):
        reference, parsed = typed.reference_answer(released, task, problem_id)
        assert typed.grade(rf"so $\boxed{{{reference}}}$", reference, parsed)[0] in official.CORRECT, problem_id


@pytest.mark.parametrize(
    ("task", "released", "correct", "incorrect"),
    [
        ("Minerva", "4.5e33", [r"4.5\times 10^{33}", "4.51e33", "45e32"], ["4.6e33", "4.5e32", "4.5"]),
        ("MATH-500", ".0000672", ["6.72e-5", r"6.72\times10^{-5}"], ["0.0000673", "0", "0.00007"]),
        ("", "12345678901234567890", ["12,345,678,901,234,567,890"], ["12345678901234567891", "1.2345678901234567e19"]),
        ("", r"\{1, 2\}", ["2,1", r"\{2,1\}"], ["(1,2)", "1", "1,2,3"]),
        ("", "(1, 2)", [r"\left(1,2\right)", "1,2"], ["(2,1)", "[1,2]", "2,1"]),
        ("", "[1, 2)", [r"1\le x<2"], ["(1,2)", "[1,2]", "1,2"]),
        ("", r"3 \pm \sqrt{2}", [r"3+\sqrt2,3-\sqrt2", r"3-\sqrt{2}, 3+\sqrt{2}"], [r"3+\sqrt{2}"]),
        ("", "y = 2x + 3", ["2y=4x+6", "y-2x=3", "2x+3"], ["y=2x+4", "2y=2x+3", "y=x=2x+3"]),
        ("", r"\text{Evelyn}", ["Evelyn", r"\text{evelyn}"], ["Eve", "Evelyn or Ann"]),
        ("", "2516_8", ["2516_{8}"], ["2516", "2516_9"]),
        ("", "34", ["34.0", "x=34"], ["34 or 35", "30+4=34", "34, 35", r"34\%"]),
    ],
)
def test_the_type_of_the_reference_answer_decides(task, released, correct, incorrect):
    _, parsed = typed.reference_answer(released, task)
    answers = (*correct, *incorrect)
    outcomes = {answer: typed.grade(rf"\boxed{{{answer}}}", released, parsed)[0] for answer in answers}
    assert {answer: outcome in official.CORRECT for answer, outcome in outcomes.items()} == {
        **dict.fromkeys(correct, True),
        **dict.fromkeys(incorrect, False),
    }


def test_what_is_asked_of_a_model_and_a_judge():
    row = benchmark_row("AIME24", 3, "What is 2+2?", r"\boxed{4}", None)
    (record,) = wanted_samples("AIME24", [row], "evaluation", 1, 0)
    assert record["prompt"] == r"What is 2+2? Please reason step by step, and put your final answer within \boxed{}."
    assert record["answer"] == r"\boxed{4}", "as released: a track decides what it means"
    text = judge.Question(record["prompt"], "4", "5").prompt
    assert "\nWhat is 2+2?\n" in text
    assert "Please reason" not in text
    assert judge.final_part("x" * 5000, "") == "x" * judge.TAIL_CHARACTERS
    assert digest(["a", "b"]) != digest(["ab"])


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [("A", "A"), (" B\n", "B"), ("C", "C"), ("A.", "unparsed"), ("The answer is A", "unparsed"), ("", "unparsed")],
)
def test_a_judges_reply_is_read_strictly(reply, verdict):
    assert judge.parse_verdict(reply) == verdict


def test_the_audit_takes_about_its_fraction_and_always_the_same():
    chosen = [judge.is_audited(0.1, "AIME24", f"AIME24-{i}", 0) for i in range(5000)]
    assert 400 < sum(chosen) < 600
    assert chosen == [judge.is_audited(0.1, "AIME24", f"AIME24-{i}", 0) for i in range(5000)]
    assert not any(judge.is_audited(0.0, "t", i) for i in range(100))
    assert all(judge.is_audited(1.0, "t", i) for i in range(100))
