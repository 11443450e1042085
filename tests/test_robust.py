"""The lenient reward: labelled cases, hostile text, and the worker processes behind it."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from data_prep import benchmarks
from data_prep.rows import open_rows
from reward import justrl, sandbox
from reward.comparison import CORRECT
from reward.robust import OUTCOMES, compute_score, judge
from reward.sandbox import POOL
from tests.conftest import ROOT

CASES = json.loads((ROOT / "tests" / "cases" / "answers.json").read_text())
HOSTILE = ["9^{9^{9^{9^{9}}}}", "99999999999!", "((9!)!)!", r"\frac{1}{" * 50000 + "}" * 50000, "{" * 100_000]
HOSTILE += ["5" * 1_000_000, "x" * 1_000_000, "(" * 300 + ")" * 300, r"\sqrt{" * 200 + "2" + "}" * 200, "5\u200b\u202e"]
HOSTILE += [
    "1" + "+1" * 280,
    "(x+1)^{9999}(x+2)^{9999}(x+3)^{9999}",
    r"\int_0^1 x^{x^x} dx",
    r"\sum_{k=1}^{10000} k^{k}",
]
HOSTILE += ["(1+x+x^2+x^3)^{5000}", r"\prod_{n=1}^{9000} (n+x)", "2^{9999}!", r"\lim_{x\to 0} (x!)^{(x!)!}"]


def boxed(answer: str) -> str:
    return rf"Some work, and so the answer is $\boxed{{{answer}}}$."


def test_labelled_cases():
    assert len(CASES) >= 300
    wrong = [
        case for case in CASES if (judge(boxed(case["answer"]), case["reference"])[0] in CORRECT) != case["correct"]
    ]
    assert wrong == []


def test_cases_cover_every_answer_type_in_both_directions():
    from reward.answers import TYPES

    sides = {(case["type"], case["correct"]) for case in CASES}
    assert sides >= {(kind, correct) for kind in TYPES for correct in (True, False)}


def mutations(reference: str) -> list[str]:
    """Return incorrect answers made of a reference answer: its sign, its first digit, its letters, a member more."""
    digit = re.search(r"[1-9]", reference)
    changed = [f"-({reference})" if reference.strip("0") else "1", f"{reference}, 77"]
    if digit:
        other = str(int(digit.group()) % 9 + 1)
        changed.append(reference[: digit.start()] + other + reference[digit.end() :])
        changed.append(reference[: digit.start()] + "7" + reference[digit.start() :])
    return changed


@pytest.mark.slow
def test_every_reference_answer_matches_itself_and_no_mutation(shared_data, tmp_path):
    benchmarks.prepare(str(shared_data / "bench"), tmp_path, list(benchmarks.PAPER_BENCHMARKS))
    rows = [
        row
        for task in benchmarks.PAPER_BENCHMARKS
        for row in open_rows(tmp_path / f"{task}.parquet").read().to_pylist()
    ]
    accepted, unread, compared = [], set(), 0
    for row in rows:
        reference, extra = row["reward_model"]["ground_truth"], row["extra_info"]
        for written in (reference, f" {reference} ", f"{reference}.", reference.replace(" ", " ~ ")):
            assert judge(boxed(written), reference, extra["answer"])[0] in CORRECT, extra["index"]
        for other in mutations(reference):
            outcome, _ = judge(boxed(other), reference, extra["answer"])
            compared += 1
            if outcome in CORRECT:
                accepted.append((extra["index"], reference, other))
            elif outcome == "unusable_truth":
                unread.add(reference)
    assert compared > 6_000
    assert accepted == []
    assert len(unread) == 5, "math-verify reads none of E_1, \\hbar, M_\\odot, m_\\max; they match as text alone"


def test_a_parsed_answer_gives_order_tolerance_required_count_and_interval():
    assert judge(boxed("2, 1"), "1, 2", {"type": "tuple"})[0] == "wrong"
    assert judge(boxed("(1,2)"), "1, 2", {"type": "tuple"})[0] == "equivalent"
    assert judge(boxed("41.77"), "41.8", {"type": "decimal", "tolerance": "0.05"})[0] == "equivalent"
    assert judge(boxed("41.7"), "41.8", {"type": "decimal", "tolerance": "0.05"})[0] == "wrong"
    assert judge(boxed("42"), "41,42,43", {"type": "set", "required_count": 1})[0] == "equivalent"
    assert judge(boxed("44"), "41,42,43", {"type": "set", "required_count": 1})[0] == "wrong"
    assert judge(boxed("42"), "41,42,43", {"type": "set", "asked": 1})[0] == "equivalent", "as files had it before"
    assert judge(boxed("1<x<2"), "(1,2)", {"type": "interval"})[0] == "equivalent"
    assert judge(boxed(r"1\le x<2"), "(1,2)", {"type": "interval"})[0] == "wrong"
    assert judge(boxed("1<x<2"), "(1,2)", {"type": "tuple"})[0] == "wrong"


def test_the_result_has_the_same_keys_for_every_outcome():
    for response in ("", boxed("1"), boxed("2"), boxed("9^{9^{9}}"), boxed(r"\frac{")):
        result = compute_score("any", response, "1", {"index": 3}, unknown=True)
        assert list(result) == ["score", "acc", "pred", *(name for name in OUTCOMES if name not in CORRECT)]
        assert None not in result.values()
        assert sum(result[name] for name in OUTCOMES if name not in CORRECT) == 1.0 - result["acc"]
    assert compute_score("any", boxed("2"), "1", wrong=0.0)["score"] == 0.0


def test_the_window_and_the_shadow():
    late = boxed(" 5 ") + "." * 100
    assert compute_score("any", late, "5")["acc"] == 1.0
    assert compute_score("any", late, "5", window=100)["no_box"] == 1.0
    assert [compute_score("any", text, "5", shadow=True)["strict"] for text in (boxed("5"), boxed(" 5 "))] == [1.0, 0.0]


@pytest.mark.parametrize("truth", [34, None, "", r"\boxed{34}", "{34"])
def test_an_unusable_ground_truth_is_an_error_with_the_row(truth):
    with pytest.raises(ValueError, match="row 17"):
        compute_score("d", boxed("34"), truth, {"index": 17})


@pytest.fixture(params=["python", "gmpy"])
def arithmetic(request, monkeypatch):
    """Workers whose sympy and mpmath compute with Python's integers or with gmpy2's, and their peaks of memory."""
    pytest.importorskip("gmpy2")
    POOL.end()
    monkeypatch.setenv("SYMPY_GROUND_TYPES", request.param)
    monkeypatch.setenv("MPMATH_NOGMPY" if request.param == "python" else "JUSTRL_UNUSED", "1")
    peaks = []
    end = sandbox.Worker.end

    def end_and_note(worker):
        status = Path(f"/proc/{worker.process.pid}/status").read_text() if worker.process.poll() is None else ""
        peaks.extend(1024 * int(kilobytes) for kilobytes in re.findall(r"VmHWM:\s+(\d+) kB", status))
        end(worker)

    monkeypatch.setattr(sandbox.Worker, "end", end_and_note)
    yield peaks
    POOL.end()


@pytest.mark.slow
def test_hostile_responses_among_honest_ones(arithmetic):
    """2,048 responses of which 5 % are hostile, from 8 threads: each honest one is scored as it is alone."""
    rng = random.Random(0)
    honest = [(case["answer"], case["reference"], case["correct"]) for case in CASES if case["type"] != "hostile"]
    mix = [rng.choice(honest) for _ in range(1946)] + [(rng.choice(HOSTILE), "5", False) for _ in range(102)]
    rng.shuffle(mix)
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda item: judge(boxed(item[0]), item[1])[0], mix))
    wrong = [(item, found) for item, found in zip(mix, outcomes, strict=True) if (found in CORRECT) != item[2]]
    assert wrong == []
    assert {POOL.ask(f"x+{i}", f"{i}+x") for i in range(2 * sandbox.WORKERS)} == {"equivalent"}
    assert judge(boxed(r"\frac{\sqrt3}{3}"), r"\frac{1}{\sqrt{3}}")[0] == "equivalent"
    limits = {psutil.Process(worker.process.pid).rlimit(psutil.RLIMIT_AS) for worker in POOL.idle.queue if worker}
    assert limits == {(sandbox.WORKER_BYTES, sandbox.WORKER_BYTES)}
    POOL.end()
    assert 0 < max(arithmetic) < sandbox.WORKER_BYTES


HARD = "(1+x+x^2+x^3)^{5000}"


def test_a_worker_that_hangs_is_killed_at_its_deadline_and_replaced(monkeypatch):
    assert POOL.ask(HARD, "5+y") == "timed_out"
    assert POOL.ask(r"\sqrt{18}+y", r"y+3\sqrt{2}") == "equivalent"
    # One deadline for a whole list, not one for each pair of its members.
    asked = []
    monkeypatch.setattr(POOL, "ask", lambda answer, truth: asked.append(answer) or "timed_out")
    assert judge(boxed(", ".join([HARD] * 4)), r"\sqrt{2},\sqrt{3},\sqrt{5},\sqrt{7}")[0] == "timed_out"
    assert len(asked) == 1


def test_another_data_sets_answer_is_no_parsed_answer():
    info = {"index": 0, "answer": "a worked solution #### 34"}
    assert compute_score("openai/gsm8k", boxed(" 34 "), "34", info)["acc"] == 1.0


def test_a_worker_that_cannot_start_is_an_error_at_first_and_a_crash_later(monkeypatch):
    pool = sandbox.Pool()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(OSError, match="did not start"):
        pool.ask("x", "y")
    pool.started = True
    assert pool.ask("x", "y") == "crashed"


def test_a_worker_that_died_is_replaced():
    assert POOL.ask("x+y", "y+x") == "equivalent"
    for worker in filter(None, list(POOL.idle.queue)):
        worker.process.kill()
        worker.process.wait()
    assert POOL.ask("x+y", "y+x") == "equivalent"


ATTEMPTS = ["__import__('pathlib').Path('{}').touch()", "open('{}','w')", r"\input{{{}}}", "exec(\"open('{}','w')\")"]
ATTEMPTS += ["().__class__.__mro__[1].__subclasses__()", "lambda: open('{}','w')", "[open('{}','w') for x in '1']"]
ATTEMPTS += [
    r"\text{{__import__('os').system('touch {}')}}",
    r"x_{{open('{}','w')}}",
    r"\operatorname{{eval}}(open('{}','w'))",
]
ATTEMPTS += [r"\write18{{touch {}}}", "Symbol('x', open('{}','w'))", "S(\"open('{}','w')\")", "f(open('{}','w'))"]


def test_the_attempts_would_run_where_text_is_evaluated(tmp_path):
    """The control: evaluated as Python, or by sympy's `parse_expr` as DeepScaleR's grader does, they leave a mark."""
    script = "import sys; from sympy.parsing.sympy_parser import parse_expr; {}(sys.argv[1])"
    for how, attempt in (("eval", ATTEMPTS[0]), ("parse_expr", ATTEMPTS[1]), ("parse_expr", ATTEMPTS[-1])):
        mark = tmp_path / f"{how}{ATTEMPTS.index(attempt)}"
        subprocess.run([sys.executable, "-c", script.format(how), attempt.format(mark)], capture_output=True)
        assert mark.exists(), attempt


def test_no_response_runs_code(tmp_path):
    mark = tmp_path / "mark"
    for attempt in ATTEMPTS:
        text = attempt.format(mark)
        for truth in ("5", text):
            judge(boxed(text), truth)
        POOL.ask(text, "5")
        POOL.ask("5", text)
        justrl.compute_score("d", boxed(text), "5", shadow=True)
    assert not mark.exists()
    assert list(tmp_path.iterdir()) == []


OWNER = """
import sys
sys.path.insert(0, {root!r})
from reward.sandbox import POOL
POOL.ask("x+y", "y+x")
print(POOL.idle.queue[-1].process.pid, flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["", "import os; os._exit(1)", "import time; time.sleep(600)"])
def test_no_worker_outlives_its_owner(end):
    script = OWNER.format(root=str(ROOT), end=end)
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    worker = int(owner.stdout.readline())
    if "sleep" in end:
        owner.send_signal(signal.SIGKILL)
    owner.wait()
    deadline = time.monotonic() + 60
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != "zombie" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == "zombie"


def test_after_a_fork_the_child_has_workers_of_its_own():
    assert POOL.ask("x+y", "y+x") == "equivalent"
    child = os.fork()
    if child == 0:
        os._exit(0 if POOL.ask("x+y", "y+x") == "equivalent" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert POOL.ask("x+z", "z+x") == "equivalent"


def test_the_readmes_lines_for_trl_and_its_table():
    text = (ROOT / "reward" / "README.md").read_text()
    names: dict = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    chat = [[{"role": "assistant", "content": boxed("34")}], [{"role": "assistant", "content": boxed("35")}]]
    assert names["justrl"](completions=chat, ground_truth=["34", "34"], prompts=["", ""]) == [1.0, -1.0]
    assert names["justrl"](completions=[boxed("34")], ground_truth=["34"]) == [1.0]
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `") and line.endswith("1 |")]
    assert len(rows) >= 10
    for truth, responses, strict, lenient in rows:
        truth = truth.strip("| `")
        for response in responses.replace(" and 91 more characters", "." * 91).split("`, `"):
            response = response.replace("`", "")
            assert justrl.compute_score("d", response, truth)["score"] == float(strict), (truth, response)
            assert compute_score("d", response, truth)["score"] == float(lenient.strip(" |")), (truth, response)


@pytest.mark.slow
@pytest.mark.parametrize("manager", ["dapo", "naive"])
def test_both_rewards_plug_into_verls_own_reward_loop(tmp_path, manager):
    """The README's lines, in stock verl's RewardLoopWorker as a Ray actor, with a real tokenizer."""
    script = Path(__file__).with_name("plug_in.py")
    done = subprocess.run(
        [sys.executable, script, manager, tmp_path], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    strict, lenient = json.loads(done.stdout.splitlines()[-1])
    assert [result["reward_score"] for result in strict] == [1.0, -1.0, -1.0, -1.0]
    assert [result["reward_score"] for result in lenient] == [1.0, 1.0, 1.0, -1.0]
    assert lenient[3]["reward_extra_info"]["wrong"] == 1.0
    keys = ("score", "acc", "pred", "outside", "lenient")
    assert {tuple(result["reward_extra_info"]) for result in strict} == {keys}
    assert [result["reward_extra_info"]["lenient"] for result in strict] == [1.0, 1.0, 0.0, 0.0]
