"""Preemptions that vLLM's own engine returns with the responses, on the CPU."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from recipe.cpu.environment import ENVIRONMENT
from recipe.verl_plugins.preemptions import COUNT, preemptions
from tests.conftest import HANGING_SECONDS, ROOT

RESPONSES, TOKENS = 16, 60
# Every response needs 5 blocks of 16 tokens: with 24 blocks not even 5 of the 16 fit at once.
GENERATE = """
import json, sys
from vllm import LLM, SamplingParams
engine = LLM(
    "models/demo", dtype="float32", max_model_len=128, max_num_seqs=16, block_size=16, enforce_eager=True,
    num_gpu_blocks_override=int(sys.argv[1]), kv_cache_memory_bytes=2**27, enable_chunked_prefill=False,
    enable_prefix_caching=False, scheduler_cls="recipe.verl_plugins.scheduler.Scheduler",
)
sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=TOKENS)
done = engine.generate([{"prompt_token_ids": [5 + i] * 20} for i in range(RESPONSES)], sampling)
print(json.dumps([[answer.kv_transfer_params, list(answer.outputs[0].token_ids)] for answer in done]))
"""


def generate(blocks: int) -> list[tuple[int, list[int]]]:
    """Return how often each response was preempted, by the extra field as verl stores it, and its tokens."""
    code = GENERATE.replace("RESPONSES", str(RESPONSES)).replace("TOKENS", str(TOKENS))
    done = subprocess.run(
        [sys.executable, "-c", code, str(blocks)],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANGING_SECONDS,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("[[")]
    assert lines, done.stderr
    return [(preemptions({"kv_transfer_params": params}), tokens) for params, tokens in json.loads(lines[-1])]


@pytest.mark.slow
def test_preempted_responses_are_counted_and_complete(demo_data):
    tight, ample = generate(24), generate(200)
    assert sum(count for count, _ in tight) > 0
    assert sum(count for count, _ in ample) == 0
    assert [tokens for _, tokens in tight] == [tokens for _, tokens in ample]


@pytest.mark.slow
def test_only_a_preempted_request_returns_a_count():
    from recipe.verl_plugins.scheduler import Scheduler

    scheduler = object.__new__(Scheduler)
    scheduler.connector = None
    assert scheduler._connector_finished(SimpleNamespace(num_preemptions=3)) == (False, {COUNT: 3})
    assert scheduler._connector_finished(SimpleNamespace(num_preemptions=0)) == (False, None)
