"""What every process of a run on the CPU needs, and the fork server that starts them."""

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.processes import REPOSITORY
from common.progress import WaitingLine
from recipe.cpu.fork_server import PYTHON_VARIABLE, SOCKET_VARIABLE

FORK = Path(__file__).with_name("fork_server.py")
POLL_SECONDS = 0.5

# What most of a run's processes import, without Ray and verl: both read the environment of the process they are first
# imported in, so a fork must import them itself.
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
    "vllm.outputs",
    "vllm.entrypoints.openai.api_server",
)

ENVIRONMENT = {
    # The first three make verl load recipe.cpu.platform, see there.
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "recipe.cpu.platform",
    "VERL_ENGINE_DEVICE": "cuda",  # verl registers its FSDP engines for cuda and npu only (EngineRegistry)
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # lets vLLM's engine run the model itself, one process fewer
    "TORCHDYNAMO_DISABLE": "1",  # compiling takes longer than a tiny model's whole run
    "TQ_NUM_THREADS": "1",  # TransferQueue's default of 8 makes it warn at every call on a smaller machine
    "OMP_NUM_THREADS": "1",  # rollout and agent loops share two cores; training takes them all, see recipe.cpu.platform
}


def server_command(socket: str) -> list[str]:
    """Return the command of a fork server that listens at a socket when it has imported MODULES."""
    return [sys.executable, "-m", "recipe.cpu.fork_server", socket, *MODULES]


@contextlib.contextmanager
def fork_server(socket: Path, variables: dict[str, str], log) -> Iterator[dict[str, str]]:
    """Yield `variables` with the one by which processes are forked from a server, started here unless one is named."""
    named = variables.get(SOCKET_VARIABLE)
    if named:
        yield {name: value for name, value in variables.items() if name != SOCKET_VARIABLE or named != "0"}
        return
    pipes = {"stdout": log, "stderr": log, "cwd": REPOSITORY, "start_new_session": True}
    server = subprocess.Popen(server_command(str(socket)), env=variables, **pipes)
    waiting = WaitingLine("importing torch, vLLM and transformers, once for all processes")
    try:
        while not socket.exists():
            if server.poll() is not None:
                raise RuntimeError("the fork server ended before it listened")
            waiting.tick()
            time.sleep(POLL_SECONDS)
        yield variables | {SOCKET_VARIABLE: str(socket)}
    finally:
        server.kill()
        server.wait()


def forked_python(variables: Mapping[str, str]) -> str | None:
    """Return the `py_executable` of Ray's workers where `variables` name a fork server, else None."""
    if variables.get(SOCKET_VARIABLE, "0") == "0":
        return None
    return shlex.join([variables.get(PYTHON_VARIABLE, sys.executable), "-S", "-E", str(FORK)])


def main() -> None:
    """Become a fork server: python -m recipe.cpu.environment SOCKET."""
    command = server_command(sys.argv[1])
    os.execve(command[0], command, os.environ | ENVIRONMENT)


if __name__ == "__main__":
    main()
