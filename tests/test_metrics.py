"""Lines for the terminal, and the cause of a failure among the framework's output."""

import pytest

from common.progress import cause, duration
from recipe.monitor.metrics import StepLines, validation_accuracy

METRICS = {"critic/score/mean": 0.25, "response_length/mean": 23.4, "actor/entropy": 0.126, "timing_s/step": 8.0}


def test_a_line_per_step_with_the_time_left():
    lines = StepLines(total_steps=20)
    line = lines.line(10, METRICS | {"val-core/demo/acc/mean@4": 0.5, "val-core/demo/acc/best@4/mean": 0.9})
    assert line == "  step   10/20  reward +0.250  length 23  entropy 0.126  8.0 s/step  80 s left  val acc 0.500"
    assert lines.line(0, {"val-core/demo/acc/mean@4": 0.5}) == "  step    0/20  val acc 0.500"
    assert "reward nan" in lines.line(11, METRICS | {"critic/score/mean": None})


def test_validation_accuracy_is_the_mean_over_the_sets():
    assert validation_accuracy({"val-core/A/acc/mean@4": 0.2, "val-core/B/acc/mean@4": 0.4}) == pytest.approx(0.3)
    assert validation_accuracy(METRICS) is None


@pytest.mark.parametrize(("seconds", "text"), [(45, "45 s"), (720, "12 min"), (12240, "3.4 h")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_cause_is_the_first_error_that_is_no_wrapper(tmp_path):
    log = tmp_path / "train.log"
    before = "ValueError: of an earlier start\n"
    log.write_text(
        before
        + "\x1b[36m(TaskRunnerV1 pid=1)\x1b[0m x.py:32: UserWarning: no engine: ModuleNotFoundError('titan')\n"
        + "\x1b[36m(vLLMHttpServer pid=2)\x1b[0m (EngineCore pid=3) ERROR 11-22 10:11:56 [core.py:1346] "
        + "ValueError: no memory for the cache\n"
        + "\x1b[36m(vLLMHttpServer pid=2)\x1b[0m EngineDeadError: EngineCore encountered an issue.\n"
        + "ray.exceptions.RayTaskError(RuntimeError): \x1b[36mray::TaskRunnerV1.run()\x1b[39m\n"
    )
    assert cause(log, offset=len(before)) == "ValueError: no memory for the cache"
    log.write_text(
        "only this\n\nwarning: step 5: policy entropy (nats): 0.553, mean of 5, is below the limit of 0.600\n"
    )
    assert cause(log) == "only this"


def test_the_cause_of_a_killed_process_is_what_ray_says_of_it(tmp_path):
    log = tmp_path / "train.log"
    log.write_text(
        "ray.exceptions.RayTaskError(ActorDiedError): ray::TaskRunnerV1.run()\n"
        "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.\n"
        "\tclass_name: vLLMHttpServer\n"
        "nanobind: leaked 1 types!\n"
    )
    assert cause(log) == (
        "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task. "
        "(class_name: vLLMHttpServer)"
    )


def test_the_cause_of_a_process_that_nccl_ends_is_the_collective(tmp_path):
    """The words are in torch 2.11's libtorch_cuda.so; the process dies of a signal, as Ray reports."""
    log, words = (
        tmp_path / "train.log",
        "Watchdog caught collective operation timeout: WorkNCCL(OpType=_ALLGATHER_BASE) ",
    )
    log.write_text(
        f"(WorkerDict pid=2) [rank0]:[E1128 02:12:40.1 ProcessGroupNCCL.cpp:683] [Rank 0] {words}ran for 600026 "
        "milliseconds before timing out.\nray.exceptions.ActorDiedError: The actor died unexpectedly.\n"
    )
    assert words in cause(log)


def test_the_cause_of_a_killed_engine_is_not_what_verl_misses(tmp_path):
    log = tmp_path / "train.log"
    log.write_text(
        "(vLLMHttpServer pid=2) ERROR 11-26 14:40:08 [async_llm.py:744] "
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.\n"
        "RuntimeError: Sync replay buffer selected terminal groups with no materializable trajectories.\n"
    )
    assert cause(log) == "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue."
