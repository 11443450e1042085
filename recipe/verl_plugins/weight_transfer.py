"""How new weights get from a training worker into its vLLM engine: verl's way, patched in two places.

verl 0.9.1 hands them over through a socket in /tmp whose name has the Ray job's id. That is 01000000 for every run that
starts a Ray of its own: on one machine such runs take each other's weights, or wait forever. And a worker waits forever
for an engine that has died or failed meanwhile. See recipe/FIDELITY.md, L8.

Both sides import this module: workers for `rollout.checkpoint_engine.custom_backend_module`, engines for
`rollout.engine_kwargs.vllm.worker_extension_cls`.
"""

import hashlib
import os
import threading
import traceback

import ray
from verl.workers.rollout.vllm_rollout import vllm_rollout
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from recipe.verl_plugins.run_file import RUN_FILE

EXECUTE = vllm_rollout.ServerAdapter._execute_method
POLL_SECONDS = 5.0  # a transfer takes seconds at most


def of_this_run(handle: str) -> str:
    run = hashlib.sha256(os.environ[RUN_FILE].encode()).hexdigest()[:8]
    return handle.replace("-zmq-", f"-zmq-{run}-", 1)


class WorkerExtension(vLLMColocateWorkerExtension):
    """The engine's side of the socket."""

    def _get_zmq_handle(self) -> str:
        return of_this_run(super()._get_zmq_handle())


class Sender(vllm_rollout.BucketedWeightSender):
    """The training worker's side of the socket."""

    def __init__(self, zmq_handle: str, **options):
        super().__init__(of_this_run(zmq_handle), **options)

    def _init_buffer(self) -> None:
        """Remove the name of shared memory once both sides have it: a worker that is killed then leaves nothing."""
        super()._init_buffer()
        if self.shm is not None:
            self.shm.unlink()
            self.shm.unlink = lambda: None  # verl would remove it at the end


async def execute_watched(self, method: str, non_block: bool = False, **options):
    """Replace `ServerAdapter._execute_method`: a thread watches calls that the worker does not wait for."""
    future = await EXECUTE(self, method, non_block, **options)
    if non_block and future is not None:
        threading.Thread(target=exit_on_failure, args=(future, self.server_handle), daemon=True).start()
    return future


def exit_on_failure(future: ray.ObjectRef, server: ray.actor.ActorHandle) -> None:
    """Exit this process if the engine fails to take its weights: the socket blocks every other way out.

    A call during which vLLM's core process died never returns (`vllm.v1.engine.core_client.AsyncMPClient`), so this
    polls the server for whether it has noticed a death.
    """
    try:
        while not ray.wait([future], timeout=POLL_SECONDS)[0]:
            if ray.get(server.__ray_call__.remote(lambda server: server.engine.errored)):
                raise RuntimeError("the vLLM engine died while it took new weights")
        ray.get(future)
    except (ray.exceptions.RayError, RuntimeError):
        traceback.print_exc()
        os._exit(1)


vllm_rollout.ServerAdapter._execute_method = execute_watched
vllm_rollout.BucketedWeightSender = Sender
