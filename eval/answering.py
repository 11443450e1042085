"""Has engines answer many requests: one queue, progress in the terminal, the engines' output in a log.

Every request waits in one queue and goes to whichever engine is free, so no engine is left with the long responses;
what an engine held when it died goes to another.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from common.machine import Demand, device, in_use, lacks
from common.models import check_model
from common.progress import WARNING, ResponseProgress, output_into
from eval.engines import GPU_OPTIONS, IN_FLIGHT, TRIES, ModelSettings, started_engines
from eval.failures import EngineDown, EngineLost, NoAccess, Refused, RequestFailed

BACKOFF_SECONDS = 1.0  # before a request's second try, and twice as long before its third
REFUSALS = 8  # NoAccess, and no answer yet: it will be the same for all

Failures = list[tuple[dict, RequestFailed]]  # records that were not answered, each with why


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


@dataclass
class Request:
    record: dict
    failed_at: list = field(default_factory=list)  # the engine of each try


class Dispatcher:
    """Has engines answer the requests of one queue, whichever engine is free first."""

    def __init__(self, records: list[dict], engines: list, done: Callable[[dict, dict], None]):
        self.engines, self.done = engines, done
        self.waiting: asyncio.Queue[Request] = asyncio.Queue()
        for record in records:
            self.waiting.put_nowait(Request(record))
        self.failed: Failures = []
        self.answered, self.refused = False, 0
        self.refusals = min(REFUSALS, len(records))  # that end it
        self.down: dict = {}  # engines that may recover, with the task that waits for it
        self.lost: dict = {}  # engines, with why

    async def run(self) -> None:
        # In turns: a few requests go to all engines, not to the first.
        running = {asyncio.ensure_future(self.serve(engine)) for _ in range(IN_FLIGHT) for engine in self.engines}
        everything = asyncio.ensure_future(self.waiting.join())
        try:
            while not everything.done():
                ended, _ = await asyncio.wait({everything, *running}, return_when=asyncio.FIRST_COMPLETED)
                for task in ended - {everything}:
                    task.result()  # raises what `done` raised, such as a full disk
                    running.discard(task)
                if len(self.lost) == len(self.engines):
                    raise RuntimeError(f"every engine died: {[*self.lost.values()][-1]}; the same command continues")
        finally:
            for task in (everything, *running, *self.down.values()):
                task.cancel()

    async def serve(self, engine) -> None:
        while engine not in self.lost:
            request = await self.waiting.get()
            try:
                if engine in self.lost or engine in self.down or self.others_left(request, engine):
                    self.waiting.put_nowait(request)
                else:
                    await self.try_once(request, engine)
            except EngineLost as error:
                self.waiting.put_nowait(request)
                self.lost[engine] = str(error)
            finally:
                self.waiting.task_done()
            if engine in self.down:
                await asyncio.wait({self.down[engine]})
            elif engine in request.failed_at:
                await asyncio.sleep(BACKOFF_SECONDS)  # meanwhile another takes it

    def others_left(self, request: Request, engine) -> bool:
        """Whether a request failed at this engine, and another that lives did not try it yet."""
        unusable = {*self.lost, *self.down, *request.failed_at}
        return engine in request.failed_at and any(other not in unusable for other in self.engines)

    async def try_once(self, request: Request, engine) -> None:
        try:
            result = await engine.generate(request.record)
        except RequestFailed as error:
            request.failed_at.append(engine)
            tries = len(request.failed_at)
            print(f"{WARNING}try {tries} of {TRIES} failed: {error}", flush=True)
            if isinstance(error, EngineDown) and engine not in self.down:
                self.down[engine] = asyncio.ensure_future(self.recover(engine))
            if tries == TRIES or (isinstance(error, Refused) and not self.others_left(request, engine)):
                self.fail(request.record, error)
            else:
                await asyncio.sleep(BACKOFF_SECONDS * 2 ** (tries - 1))
                self.waiting.put_nowait(request)
        else:
            self.answered = True
            self.done(request.record, result)

    def fail(self, record: dict, error: RequestFailed) -> None:
        self.failed.append((record, error))
        self.refused += isinstance(error, NoAccess)
        if not self.answered and self.refused == self.refusals:
            raise ValueError(str(error))

    async def recover(self, engine) -> None:
        try:
            await engine.recovered()
        except EngineLost as error:
            self.lost[engine] = str(error)
        finally:
            del self.down[engine]


async def answer_all(records: list[dict], engines: list, done: Callable[[dict, dict], None]) -> Failures:
    """Have engines answer every record, and call `done(record, result)` for each as it is finished.

    Args:
        records: each with `prompt_ids` (or `prompt`, for an endpoint) and `seed`.
        engines: objects whose `generate(record)` returns a result, or raises RequestFailed or EngineLost.

    Raises:
        RuntimeError: every engine is lost.
        ValueError: the servers refuse the key, the model or the address.
    """
    dispatcher = Dispatcher(records, engines, done)
    await dispatcher.run()
    return dispatcher.failed


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
