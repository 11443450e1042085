"""Shared memory for new weights has no name as soon as both sides have it, so that a killed run leaves none."""

import os
import subprocess
import sys

from recipe.cpu.environment import ENVIRONMENT
from recipe.heartbeat import RUN_FILE
from tests.conftest import HANGING_SECONDS, ROOT

TRANSFER = """
import sys
from pathlib import Path
from threading import Thread

import torch
import verl
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
from recipe.verl_plugins.weight_transfer import Sender, of_this_run

def named():
    return {path.name for path in Path("/dev/shm").glob("verl_weights_*")}

handle, before = f"ipc://{sys.argv[1]}/rl-zmq-0.sock", named()
sender = Sender(zmq_handle=handle, bucket_size_mb=1, use_shm=True)
receiver = BucketedWeightReceiver(zmq_handle=of_this_run(handle), device=torch.device("cpu"), use_shm=True)
sender._init_socket()
receiver._init_socket()
connected = Thread(target=receiver._init_buffer)
connected.start()
sender._init_buffer()
connected.join()
assert named() <= before, "killed now, they leave nothing"
sender.buffer[:3] = torch.tensor([1, 2, 3])
assert receiver.buffer[:3].tolist() == [1, 2, 3]
receiver._cleanup()
sender._cleanup()
assert named() <= before
"""


def test_a_transfer_that_is_killed_leaves_no_shared_memory(tmp_path):
    env = os.environ | ENVIRONMENT | {RUN_FILE: str(tmp_path)}
    command = [sys.executable, "-c", TRANSFER, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANGING_SECONDS)
    assert done.returncode == 0, done.stderr
