"""How new weights get from a training worker into its vLLM engine: verl's way, mended at two places.

verl 0.9.1 hands them over by a socket in /tmp that is named by the Ray job's id. Runs that each started a Ray of their
own all have the id 01000000: on one machine they take each other's weights, or wait for ever. And a worker waits for
ever for an engine that has died or failed meanwhile. recipe/FIDELITY.md, L8, has both.

Both sides import this module: workers because `rollout.checkpoint_engine.custom_backend_module` names it, engines
because `rollout.engine_kwargs.vllm.worker_extension_cls` names the class.
"""

import hashlib
import os
import threading
import traceback

import ray
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter

EXECUTE = ServerAdapter._execute_method
ASK_SECONDS = 5.0  # a transfer takes seconds at most
RUN = "VERL_FILE_LOGGER_PATH"  # in the environment of all processes of a run, and of no other run's


def of_this_run(handle: str) -> str:
    """Return the name of a socket that no other run on this machine has."""
    run = hashlib.sha256(os.environ[RUN].encode()).hexdigest()[:8]
    return handle.replace("-zmq-", f"-zmq-{run}-", 1)


class WorkerExtension(vLLMColocateWorkerExtension):
    """The engine's side of the socket."""

    def _get_zmq_handle(self) -> str:
        return of_this_run(super()._get_zmq_handle())


async def execute_watched(self, method: str, non_block: bool = False, **options):
    """Stand in for `ServerAdapter._execute_method`: a call that is not waited for is watched by a thread."""
    future = await EXECUTE(self, method, non_block, **options)
    if non_block and future is not None:
        threading.Thread(target=end_unless_done, args=(future, self.server_handle), daemon=True).start()
    return future


def end_unless_done(future: ray.ObjectRef, server: ray.actor.ActorHandle) -> None:
    """End this process if the engine fails to take its weights: the socket blocks every other way out.

    vLLM answers a call that was under way when its core process died neither with a result nor with an error
    (`vllm.v1.engine.core_client.AsyncMPClient`), so the server is asked now and then whether it has noticed a death.
    """
    try:
        while not ray.wait([future], timeout=ASK_SECONDS)[0]:
            if ray.get(server.__ray_call__.remote(has_failed)):
                raise RuntimeError("the vLLM engine died while it took new weights")
        ray.get(future)
    except (ray.exceptions.RayError, RuntimeError):
        traceback.print_exc()
        os._exit(1)


def has_failed(server) -> bool:
    """Return whether vLLM's engine is lost; runs in the server's process."""
    return server.engine.errored


ServerAdapter._execute_method = execute_watched
# A property, for the worker's adapter has its handle already when this module is imported.
ServerAdapter.zmq_handle = property(
    lambda self: of_this_run(vars(self)["zmq_handle"]), lambda self, handle: vars(self).update(zmq_handle=handle)
)
