"""The queue between requests and engines: nothing is lost or answered twice, whichever engine fails."""

import asyncio
import random
import socket

import pytest

from eval import endpoint, engines
from eval.answering import answer_all
from eval.endpoint import Endpoint
from eval.engines import TRIES
from eval.failures import EngineLost, Overflow, Refused, RequestFailed

pytestmark = pytest.mark.usefixtures("impatient")
RECORDS = [{"seed": i, "prompt": "p"} for i in range(600)]


class Answering:
    """Answers each record after a moment, but what `fault` says of it."""

    def __init__(self, fault=lambda record: None):
        self.fault, self.answered = fault, 0

    async def generate(self, record):
        await asyncio.sleep(random.random() / 500)
        if error := self.fault(record):
            raise error
        self.answered += 1
        return {"tokens": record["seed"]}


def answer(served, records=RECORDS):
    """Return the seeds that were answered, in order, and the failures."""
    done = []
    failed = asyncio.run(answer_all(records, served, lambda record, result: done.append(result["tokens"])))
    return sorted(done), [str(error) for _, error in failed]


def test_every_record_is_answered_once_and_all_engines_work():
    served = [Answering(), Answering(), Answering()]
    assert answer(served) == (list(range(600)), [])
    assert all(engine.answered > 50 for engine in served)


def test_a_lost_engines_records_go_to_another():
    lost = Answering(lambda record: EngineLost("gone") if record["seed"] > 100 else None)
    assert answer([lost, Answering()]) == (list(range(600)), [])
    with pytest.raises(RuntimeError, match="every engine died: gone"):
        answer([Answering(lambda record: EngineLost("gone"))])


@pytest.mark.parametrize(("error", "most"), [(RequestFailed, TRIES), (Overflow, 1), (Refused, 1)])
def test_a_failing_record_is_tried_again_where_that_may_help_and_then_named(error, most):
    tries = []

    def fault(record):
        if record["seed"] == 7:
            tries.append(1)
            return error("too long")

    assert answer([Answering(fault)]) == ([i for i in range(600) if i != 7], ["too long"])
    assert len(tries) == most


def test_a_few_requests_go_to_all_engines():
    served = [Answering(), Answering()]
    assert answer(served, RECORDS[:10]) == (list(range(10)), [])
    assert [engine.answered for engine in served] == [5, 5]


def test_what_the_caller_raises_ends_it():
    def full(record, result):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        asyncio.run(answer_all(RECORDS, [Answering()], full))


def test_a_dead_server_does_not_eat_the_queue_of_a_living_engine(monkeypatch):
    monkeypatch.setattr(endpoint, "RESTART_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"

    async def both():
        dead = Endpoint(url, "m", {})
        dead.client = dead.client.with_options(max_retries=0)
        with pytest.raises(ValueError, match="does not answer as an OpenAI-compatible server"):
            await dead.describe()
        done = []
        failed = await answer_all(RECORDS, [dead, Answering()], lambda record, result: done.append(result["tokens"]))
        return sorted(done), failed

    assert asyncio.run(both()) == (list(range(600)), [])


def test_the_cpus_options_are_not_a_gpus(monkeypatch):
    monkeypatch.setattr(engines, "device", lambda: "cuda")
    assert engines.engine_options("m", 32768, 2) == {
        "model": "m",
        "max_model_len": 32768,
        "tensor_parallel_size": 2,
        "distributed_executor_backend": "mp",
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "gpu_memory_utilization": 0.9,
        "enforce_eager": False,
    }
    monkeypatch.setattr(engines, "device", lambda: "cpu")
    assert engines.engine_options("m", 100)["enforce_eager"]
