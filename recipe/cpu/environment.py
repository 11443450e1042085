"""The environment of every process of a run on the CPU, and the fork server that starts them."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from common.fork_server import fork_forever
from common.forked_python import SOCKET_VARIABLE
from common.processes import REPOSITORY
from common.progress import WaitingLine

POLL_SECONDS = 0.5

# What most processes of a run import, without Ray and verl: these two read their environment variables when they are
# imported, so each fork must import them itself.
MODULES = (
    "tensordict",
    "torch._inductor.lowering",
    "torch.utils.tensorboard",
    "datasets",
    "torchdata.stateful_dataloader",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen2.modeling_qwen2",
    "peft",
    "setproctitle",
    "vllm.outputs",
    "vllm.entrypoints.openai.api_server",
)

ENVIRONMENT = {
    # The first three make verl load recipe.cpu.platform, see there.
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "recipe.cpu.platform",
    "VERL_ENGINE_DEVICE": "cuda",  # verl registers its FSDP engines for cuda and npu only (EngineRegistry)
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # vLLM's engine runs the model itself, one process fewer
    "TORCHDYNAMO_DISABLE": "1",  # compiling takes longer than a tiny model's whole run
    "TQ_NUM_THREADS": "1",  # TransferQueue's default of 8 makes it warn at every call on a smaller machine
    "PYTHONDONTWRITEBYTECODE": "",  # compiling what is imported again and again takes half of each process's start
    "OMP_NUM_THREADS": "1",  # rollout and agent loops share two cores; training takes them all, see recipe.cpu.platform
}


@contextlib.contextmanager
def fork_server(socket: Path, variables: dict[str, str], log) -> Iterator[dict[str, str]]:
    """Yield `variables` with the socket of a fork server, started here unless they set one, or "0" for none."""
    if variables.get(SOCKET_VARIABLE):
        yield variables
        return
    command = [sys.executable, "-m", "recipe.cpu.environment", str(socket)]
    options = {"stdout": log, "stderr": log, "cwd": REPOSITORY, "start_new_session": True}
    server = subprocess.Popen(command, env=variables, **options)
    waiting = WaitingLine("importing torch, vLLM and transformers, once for all processes")
    try:
        while not socket.exists():
            if server.poll() is not None:
                print("  note: the fork server did not start, so each process imports by itself; see train.log")
                break
            waiting.tick()
            time.sleep(POLL_SECONDS)
        yield variables | ({SOCKET_VARIABLE: str(socket)} if socket.exists() else {})
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":  # python -m recipe.cpu.environment SOCKET: the fork server of a run
    os.environ.update(ENVIRONMENT)
    sys.dont_write_bytecode = False  # also of its forks, whose imports are the same at each start
    fork_forever(sys.argv[1], *MODULES)
