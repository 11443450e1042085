"""The evaluation for real: nine benchmarks through Ray and vLLM, killed twice; a served model as judge."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from data_prep.benchmarks import PAPER_BENCHMARKS
from tests.conftest import HANGING_SECONDS, ROOT
from tests.test_eval import write_samples
from tests.test_processes import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("demo_data")]
ENVIRONMENT = os.environ | {"JUSTRL_DEVICE": "cpu"}


@pytest.fixture
def command(fork_server):
    """Run a command of the evaluation to its end; returns its exit status, output and errors."""

    def run(module, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", f"eval.{module}", *map(str, arguments)],
            cwd=ROOT,
            env=fork_server,
            capture_output=True,
            text=True,
            timeout=HANGING_SECONDS,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def samples(folder):
    """Return every sample of a folder by its identity, each exactly once."""
    found = {}
    for path in folder.glob("*.samples.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            key = (record["task"], record["problem_id"], record["sample"])
            assert key not in found
            found[key] = record
    return found


def count(folder):
    """Return how many whole lines of samples a folder has."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.samples.jsonl"))


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    """The prepared benchmarks, and what samples all of them."""
    from tests.conftest import SHARED

    if not SHARED.is_dir():
        pytest.skip("the real data is not beside this checkout (../shared/data)")
    bench = tmp_path_factory.mktemp("bench")
    prepare = [sys.executable, "-m", "data_prep.benchmarks", "--source", SHARED / "bench", "--output", bench]
    subprocess.run(prepare, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return ["--model", "models/demo", "--bench", bench, "--samples", 1, "--max-tokens", 8]


def generate_and_kill(command, folder, samples, engine_dies_at=None):
    """Kill a sampling when its folder has so many samples, one of its two engines before; returns its process ids."""
    run = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT)
    if engine_dies_at:
        wait_until(lambda: count(folder) > engine_dies_at or run.poll() is not None)
        engines = [p for p in psutil.Process(run.pid).children(recursive=True) if "ray::Engine" in p.name()]
        assert len(engines) == 2
        engines[0].kill()
    wait_until(lambda: count(folder) > samples or run.poll() is not None)
    assert run.poll() is None, (folder / "generate.log").read_text()[-3000:]
    recorded = json.loads((folder / "processes.json").read_text())["processes"].keys()
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    return set(recorded)


def test_killed_twice_and_once_an_engine_it_ends_with_an_undisturbed_runs_samples(nine, command, tmp_path):
    folder, total = tmp_path / "killed", sum(benchmark.problems for benchmark in PAPER_BENCHMARKS.values())
    generate = [sys.executable, "-m", "eval.generate", *map(str, nine), "--output", str(folder)]
    left = generate_and_kill([*generate, "--workers", "1"], folder, samples=200)
    left |= generate_and_kill([*generate, "--workers", "2"], folder, samples=700, engine_dies_at=400)
    with open(folder / "Olympiad-Bench.samples.jsonl", "a") as file:
        file.write('{"task": "Olymp')
    there = count(folder)

    status, output, errors = command("generate", *nine, "--output", folder)
    assert status == 0, errors
    assert "is truncated; moved to" in output
    assert f"  {total - there} samples of models/demo" in output, "what is on disk is not generated again"
    assert not [pid for pid in left if psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != "zombie"]
    assert len(samples(folder)) == total
    assert command("generate", *nine, "--output", folder, "--workers", 2)[1].endswith("all samples are there\n")

    some = ("AIME25", "AMC23", "MATH-500")  # a third: the samples of one task do not depend on the others
    again = tmp_path / "undisturbed"
    status, _, errors = command("generate", *nine, "--tasks", ",".join(some), "--output", again, "--workers", 2)
    assert status == 0, errors
    assert samples(again) == {key: record for key, record in samples(folder).items() if key[0] in some}

    status, _, errors = command("generate", *nine, "--output", folder, "--temperature", 1)
    assert (status, len(errors.splitlines())) == (2, 1)
    assert "made with temperature=0.7, not 1.0" in errors
    assert command("grade", folder)[0] == 0
    scores = json.loads((folder / "scores.json").read_text())
    assert {task: values["problems"] for task, values in scores["tasks"].items()} == {
        task: benchmark.problems for task, benchmark in PAPER_BENCHMARKS.items()
    }


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A chat model of half a million parameters that learned to answer questions of a judge with A, and its folder."""
    from data_prep.demo.model import build_model, build_tokenizer, warm_start
    from eval.judge import Question

    folder = tmp_path_factory.mktemp("judge")
    settings = {"seed": 0, "hidden_size": 128, "layers": 1, "steps": 30, "batch_size": 4, "learning_rate": 1e-2}
    tokenizer = build_tokenizer(400)
    model, examples = build_model(tokenizer, settings), []
    for number in range(120):
        turn = [{"role": "user", "content": Question(f"What is {number} + 1?", f"{number}", "7").prompt}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        reply = tokenizer("A" + tokenizer.eos_token)["input_ids"]
        examples.append({"input_ids": prompt + reply, "labels": [-100] * len(prompt) + reply})
    warm_start(model, tokenizer, examples, settings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(judge):
    """The address of an OpenAI-compatible server of that model, which calls it `judge`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--model", judge, "--served-model-name", "judge", "--port", port, "--host", "127.0.0.1"]
    options += ["--dtype", "float32", "--enforce-eager", "--max-model-len", 4096, "--max-num-batched-tokens", 8192]
    options += ["--no-enable-chunked-prefill", "--kv-cache-memory-bytes", 2**28]
    log = Path(judge) / "server.log"
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *map(str, options)],
            env=ENVIRONMENT | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: "startup complete" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()[-3000:]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(HANGING_SECONDS)


def test_a_served_model_samples_and_judges(server, judge, command, tmp_path):
    arguments = ["--bench", "data/demo", "--tasks", "test", "--samples", 2, "--max-tokens", 8, "--output", tmp_path]
    arguments += ["--endpoint", server]
    status, _, errors = command("generate", "--model", "another", *arguments)
    assert (status, errors.count("\n")) == (2, 1)
    assert "has no model another; it has judge" in errors
    assert command("generate", "--model", "judge", *arguments)[0] == 0
    found = samples(tmp_path)
    assert len(found) == 512
    assert {record["finish_reason"] for record in found.values()} <= {"stop", "length"}

    lines = [json.loads(line) for line in (tmp_path / "test.samples.jsonl").read_text().splitlines()]
    for line in lines:
        if line["sample"] == 0 and int(line["problem_id"]) < 40:
            line["response"] = rf"\boxed{{{line['answer']}}}"
    lines[-1]["prompt"], lines[-1]["response"] = "7 + 7 = " * 10_000, "no box"  # more than the judge's context
    (tmp_path / "test.samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, output, errors = command("grade", tmp_path, "--judge", "judge", "--endpoint", server, "--audit", 1)
    assert status == 0, errors
    assert "  test: avg@2 " in output, "the log has the engines' output alone"
    scores = json.loads((tmp_path / "scores.json").read_text())
    task = scores["tasks"]["test"]
    assert task["judged"]["audited"] >= 40
    assert task["judged"]["overflow"] == 1
    assert task["judged"]["A"] / task["judged"]["graded"] > 0.9, "it learned to say A"
    assert sum(task["judged"][name] for name in ("A", "B", "C", "unparsed", "overflow")) == task["judged"]["graded"]
    alone, together = (scores["means"][track]["avg"] for track in ("official", "official+judge"))
    assert together == pytest.approx(alone + task["judged"]["A"] / 512)
    assert scores["means"]["strict-typed"]["avg"] < 0.5, "no judge there"

    # The same model as engines on Ray: what was judged under another name is asked again, and it says the same.
    status, _, errors = command("grade", tmp_path, "--judge", judge, "--audit", 1)
    assert status == 0, errors
    assert json.loads((tmp_path / "scores.json").read_text())["tasks"]["test"]["judged"] == task["judged"]


def test_a_judge_that_is_not_there_or_too_small(judge, command, tmp_path):
    write_samples(tmp_path, "t", ["no"], samples=1)
    status, _, errors = command("grade", tmp_path, "--judge", "models/absent")
    assert (status, errors) == (2, "eval.grade: model models/absent: no such folder\n")
    small = tmp_path / "small"
    small.mkdir()
    for path in Path(judge).iterdir():
        (small / path.name).write_bytes(path.read_bytes())
    config = json.loads((small / "config.json").read_text()) | {"max_position_embeddings": 64}
    (small / "config.json").write_text(json.dumps(config))
    status, _, errors = command("grade", tmp_path, "--judge", small)
    assert (status, errors.count("\n")) == (2, 1)
    assert "its context of 64 tokens holds no question" in errors
