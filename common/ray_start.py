"""Ray's start on a slow or loaded machine: what no variable of RAY_PATIENCE changes in Ray 2.60.

A node's raylet waits 15 s for each of the ports that its agents choose when they have imported their Python, and ends.
Whoever starts the node does not notice that and waits on. Both are changed here, in private functions of Ray, and its
dashboard and autoscaler are not started where nobody looks at them: two more processes that import Python for seconds.
"""

import contextlib
import functools
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.processes import RAY_PATIENCE, python_path

AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
# Above those of Ray's workers, and below those that Linux gives to connections, which may take a free one any moment.
PORTS = range(20_000, 30_000)


def free_port() -> int:
    while True:
        with contextlib.suppress(OSError), socket.create_server(("", random.choice(PORTS))) as server:
            return server.getsockname()[1]


def wait_for_node(get_node: Callable, node: Any, address: str, node_id: str) -> dict:
    """Replace `get_node`: wait until the node that starts has registered, or its raylet has died."""
    from ray.exceptions import RaySystemError

    (raylet,) = node.all_processes["raylet"]
    while True:
        try:
            return get_node(address, node_id)
        except RuntimeError:  # not in RAY_raylet_start_wait_time_s
            if node_id != node._node_id:
                raise
            if raylet.process.poll() is not None:
                raise RaySystemError("Ray's raylet died while it started") from None


def prepare_ray_start(*ignored) -> None:
    """Change how Ray nodes start that this process starts; also RAY_START_HOOK, which `ray start` calls."""
    from ray._private import services
    from ray._private.node import Node

    start, start_dashboard, start_monitor = Node.start_raylet, Node.start_api_server, Node.start_monitor
    get_node = services.get_node

    def start_raylet(node: Node, *arguments) -> None:
        for name in AGENT_PORTS:
            port = free_port()
            setattr(node._ray_params, name, port)
            Path(node._session_dir, f"{name}_{node._node_id}").write_text(str(port))
        start(node, *arguments)
        services.get_node = functools.partial(wait_for_node, get_node, node)

    def start_api_server(node: Node, *, include_dashboard: bool | None, **options) -> None:
        node._webui_url = None
        if include_dashboard is not False:
            start_dashboard(node, include_dashboard=include_dashboard, **options)

    def start_autoscaler(node: Node) -> None:
        if node._ray_params.include_dashboard is not False:
            start_monitor(node)

    Node.start_raylet, Node.start_api_server, Node.start_monitor = start_raylet, start_api_server, start_autoscaler


if __name__ == "__main__":  # python -m common.ray_start: the variables of `ray start`, for a shell to export
    for name, value in RAY_PATIENCE.items():
        print(f"{name}={os.environ.get(name, value)}")
    print(f"RAY_START_HOOK=common.ray_start.prepare_ray_start\nPYTHONPATH={python_path()}")
