"""Has engines answer many requests: one queue, progress in the terminal, the engines' output in a log.

Every request waits in one queue and goes to whichever engine is free, so no engine is left with the long responses;
what an engine held when it died goes to another.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from common.machine import Demand, device, in_use, lacks
from common.models import check_model
from common.progress import ResponseProgress, output_into
from eval.engines import (
    GPU_OPTIONS,
    IN_FLIGHT,
    TRIES,
    EngineLost,
    ModelSettings,
    Overflow,
    RequestFailed,
    started_engines,
)

Failures = list[tuple[dict, RequestFailed]]  # records that failed TRIES times or overflow, each with why


def tokenize(model: str, revision: str | None, records: list[dict]) -> None:
    """Give records their `prompt_ids`, one user turn in the model's chat template; OSError where the hub has none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
    made: dict[str, list[int]] = {}
    for record in records:
        if (text := record["prompt"]) not in made:
            turn = [{"role": "user", "content": text}]
            made[text] = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        record["prompt_ids"] = made[text]


def check_engines(settings: ModelSettings, length: int) -> None:
    """Raise a ValueError of one line if the model's context is too short, or this machine's GPUs cannot serve it."""
    check_model(settings.model, length)
    if device() == "cpu" or os.environ.get("RAY_ADDRESS"):
        return
    demand = Demand((settings.workers or 1) * settings.tensor_parallel, GPU_OPTIONS["gpu_memory_utilization"])
    if problems := lacks(demand) or in_use(demand):
        raise ValueError(problems[0])


async def answer_all(records: list[dict], engines: list, done: Callable[[dict, dict], None]) -> Failures:
    """Have engines answer every record, and call `done(record, result)` for each as it is finished.

    Args:
        records: each with `prompt_ids` (or `prompt`, for an endpoint) and `seed`.
        engines: objects whose `generate(record)` returns a result, or raises RequestFailed or EngineLost.

    Raises:
        RuntimeError: every engine is lost.
    """
    waiting: asyncio.Queue = asyncio.Queue()
    for record in records:
        waiting.put_nowait((record, 1))
    failed, lost = [], []

    def retry(record: dict, tried: int, error: RequestFailed) -> None:
        if tried < TRIES and not isinstance(error, Overflow):
            waiting.put_nowait((record, tried + 1))
        else:
            failed.append((record, error))

    async def serve(engine) -> None:
        while True:
            record, tried = await waiting.get()
            try:
                done(record, await engine.generate(record))
            except EngineLost as error:
                waiting.put_nowait((record, tried))
                lost.append(str(error))
                return
            except RequestFailed as error:
                retry(record, tried, error)
            finally:
                waiting.task_done()

    running = {asyncio.ensure_future(serve(engine)) for engine in engines for _ in range(IN_FLIGHT)}
    everything = asyncio.ensure_future(waiting.join())
    try:
        while not everything.done():
            ended, _ = await asyncio.wait({everything, *running}, return_when=asyncio.FIRST_COMPLETED)
            for task in ended - {everything}:
                task.result()  # raises what `done` raised, such as a full disk
                running.discard(task)
            if not running:
                raise RuntimeError(f"every engine died: {lost[-1]}")
    finally:
        for task in (everything, *running):
            task.cancel()
    return failed


def answer(
    records: list[dict],
    settings: ModelSettings,
    sampling: dict,
    log: Path,
    done: Callable[[dict, dict], None],
    started: Callable[[list[dict]], None] = lambda described: None,
) -> Failures:
    """Start engines and have them answer every record, as `answer_all` does, with their output in a log.

    Args:
        sampling: vLLM's sampling parameters, but the seed.
        started: called once with what the engines report of themselves.
    """
    length = 0
    if not settings.endpoint:
        length = max(len(record["prompt_ids"]) for record in records) + sampling["max_tokens"]
        check_engines(settings, length)

    async def run(terminal) -> Failures:
        async with started_engines(settings, length, sampling) as (engines, described):
            started(described)
            progress = ResponseProgress(len(records), terminal)

            def finished(record: dict, result: dict) -> None:
                done(record, result)
                progress.add(result["tokens"] or 0)

            return await answer_all(records, engines, finished)

    with output_into(log) as terminal:
        return asyncio.run(run(terminal))
