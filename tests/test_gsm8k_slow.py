"""A real pretrained model, a Llama with its own chat template, goes from GSM8K's rows to the report on the CPU."""

import importlib.util
import json
import subprocess

import pytest

from recipe.monitor.metrics import read_metrics
from tests.conftest import HANGING_SECONDS, ROOT, SHARED
from tests.smollm2 import FOLDER, PACKAGE, smollm2
from tests.test_run_slow import experiment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED.name} folder beside the repository"),
    pytest.mark.skipif(not importlib.util.find_spec(PACKAGE), reason=f"{PACKAGE} is not installed; run make test"),
]
TRAIN, TEST = 16, 4  # problems
SIZES = {
    "data.max_prompt_length": 256,
    "data.max_response_length": 32,
    "data.train_batch_size": 2,
    "data.val_max_samples": 2,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 1,
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 512,
    "actor_rollout_ref.rollout.n": 2,
    "actor_rollout_ref.rollout.max_model_len": 512,
    "actor_rollout_ref.rollout.max_num_batched_tokens": 512,
    "actor_rollout_ref.rollout.max_num_seqs": 8,
    "trainer.total_training_steps": 2,
    "trainer.save_freq": 2,
    "trainer.test_freq": 2,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, fork_server):
    """The run's folder, and what the command printed."""
    folder, place = experiment("test_gsm8k"), tmp_path_factory.mktemp("gsm8k")
    (place / "raw").mkdir()
    for split, count in (("train", TRAIN), ("test", TEST)):
        lines = (SHARED / "gsm8k" / f"{split}.jsonl").read_text().splitlines()[:count]
        (place / "raw" / f"{split}.jsonl").write_text("\n".join(lines))
    names = [f"trainer.experiment_name={folder.name}", f"actor_rollout_ref.model.path={smollm2()}"]
    done = subprocess.run(
        ["./run_justrl.sh", "gsm8k", "--allow", "*", *names, *(f"{key}={value}" for key, value in SIZES.items())],
        cwd=ROOT,
        env=fork_server
        | {"JUSTRL_DATA": str(place / "data"), "JUSTRL_GSM8K": str(place / "raw")}
        | {"JUSTRL_EVAL": "--samples 1 --max-tokens 32"},
        capture_output=True,
        text=True,
        timeout=HANGING_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_every_stage_has_run(run):
    folder, printed = run
    assert f"GSM8K.parquet: {TEST} problems" in printed
    assert "GSM8K: avg@1" in printed
    metrics = read_metrics(folder / "metrics.jsonl")
    assert metrics[2]["actor/grad_norm"] is not None
    assert "val-core/gsm8k/acc/mean@1" in metrics[2]
    assert (folder / "report.html").exists()
    for name in ("base", "step_2"):
        lines = (folder / "eval" / name / "GSM8K.samples.jsonl").read_text().splitlines()
        assert len(lines) == TEST
        assert all(json.loads(line)["tokens"] > 0 for line in lines)


def test_the_export_is_the_llama_with_its_own_template_and_end_token(run):
    exported, name = run[0] / "export" / "step_2", "chat_template.jinja"
    assert (exported / name).read_text() == (FOLDER / name).read_text()
    config, original = (json.loads((path / "config.json").read_text()) for path in (exported, FOLDER))
    for key in ("model_type", "vocab_size", "eos_token_id", "rope_parameters", "tie_word_embeddings"):
        assert config[key] == original[key], key
