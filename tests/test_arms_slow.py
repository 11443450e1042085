"""The paper's arms train for real steps by the run's own command, and what they change shows in the metrics.

A start takes a minute, so the same runs show what is common to all: long validation responses, Weights & Biases that
continues under its id, and a warning that is said once.
"""

import json
import subprocess
from collections import defaultdict

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer

from recipe.monitor.metrics import read_metrics
from tests.conftest import HANGING_SECONDS, ROOT
from tests.test_run_slow import experiment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("demo_data")]

TOKENS = 16  # of a training response; a worked answer of the demo has 21 to 24, a guess 6 or 7
SMALL = [
    "actor_rollout_ref.model.path=models/demo",
    "data.train_files=data/demo/train.parquet",
    "data.val_files=data/demo/test.parquet",
    "data.val_max_samples=16",
    "data.train_batch_size=32",
    "data.max_prompt_length=64",
    f"data.max_response_length={TOKENS}",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=8192",
    "actor_rollout_ref.rollout.max_num_seqs=256",
    "actor_rollout_ref.rollout.val_kwargs.n=4",
    "trainer.test_freq=-1",
]
PENALTY = f"reward.reward_kwargs.overlong_buffer_cfg.len={TOKENS // 2}"


def train(env, name, arms, steps, *overrides, **environment):
    """Train shrunk arms under a name, and return what the command printed."""
    command = [".venv/bin/python", "-m", "recipe.train", "justrl_deepseek", f"+arms=[{arms}]", "--allow", "*"]
    done = subprocess.run(
        [*command, *SMALL, f"trainer.experiment_name={name}", f"trainer.total_training_steps={steps}", *overrides],
        cwd=ROOT,
        env=env | environment,
        capture_output=True,
        text=True,
        timeout=HANGING_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def overlong(fork_server):
    """The folder of a run with the penalty, with the agent loops of a GPU run, validated before training."""
    folder = experiment("test_overlong")
    loops = "actor_rollout_ref.rollout.agent.agent_loop_manager_class=recipe.verl_plugins.agent_loops.AgentLoopManager"
    longer = "actor_rollout_ref.rollout.custom.validation_response_length=64"
    train(fork_server, folder.name, "overlong", 2, PENALTY, loops, longer, "trainer.save_freq=-1")
    return folder


@pytest.fixture(scope="module")
def verifier(fork_server):
    """The folder of a run with the verifier and W&B, continued once, and what the two starts printed."""
    folder = experiment("test_verifier")
    four = ["data.max_response_length=4", "trainer.save_freq=5", "trainer.val_before_train=false"]
    same = {"JUSTRL_WANDB": "offline"}
    return folder, [train(fork_server, folder.name, "robust_verifier", steps, *four, **same) for steps in (5, 6)]


def test_the_over_long_penalty_lowers_the_reward_of_long_responses(overlong):
    metrics = read_metrics(overlong / "metrics.jsonl")[2]
    assert 0 < metrics["reward/overlong"] <= 1
    assert -1 <= metrics["reward/overlong_reward"] < 0
    assert metrics["critic/score/min"] == -2, "the penalty adds to the verifier's -1"
    added = metrics["reward/score"] + metrics["reward/overlong_reward"]
    assert metrics["critic/score/mean"] == pytest.approx(added, abs=1e-5)


def dumped(path):
    """Return the responses that verl dumped at a step: their numbers of tokens and their rows."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "demo")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(len(tokenizer(row["output"])["input_ids"]), row) for row in rows]


def test_validation_responses_pass_the_training_limit_and_are_scored(overlong):
    validated = dumped(overlong / "validation" / "0.jsonl")
    assert max(length for length, _ in validated) > TOKENS
    metrics = read_metrics(overlong / "metrics.jsonl")
    assert metrics[1]["response_length/max"] == TOKENS
    assert metrics[1]["response_length/clip_ratio"] > 0, "some training responses were cut"
    assert [row for length, row in validated if length > TOKENS and row["acc"] == 1], "boxes beyond it are found"
    accuracy = sum(row["acc"] for _, row in validated) / len(validated)
    assert metrics[0]["val-core/demo_arithmetic/acc/mean@4"] == pytest.approx(accuracy)


def test_the_verifier_says_why_a_response_is_wrong(verifier):
    metrics = read_metrics(verifier[0] / "metrics.jsonl")
    assert list(metrics) == [1, 2, 3, 4, 5, 6]
    reasons = ("wrong", "no_box", "unparsable", "refused", "timed_out", "crashed", "unusable_truth")
    for step in metrics.values():
        assert sum(step[f"reward/{reason}"] for reason in reasons) == pytest.approx(1 - step["reward/acc"])
        assert step["reward/acc"] >= step["reward/strict"]
        assert step["critic/score/min"] == -1
        assert "reward/overlong" not in step


def test_wandb_continues_under_the_same_id(verifier):
    folder = verifier[0]
    run_id = (folder / "wandb.id").read_text()
    starts = sorted(path.name for path in (folder / "wandb").glob("offline-run-*"))
    assert [name.rsplit("-", 1)[1] for name in starts] == [run_id, run_id]
    assert all((folder / "wandb" / name / f"run-{run_id}.wandb").stat().st_size > 1000 for name in starts)
    assert list((folder / "tensorboard").iterdir())


def test_a_warning_is_said_once(verifier):
    folder, outputs = verifier
    line = "warning: step 5: fraction of responses unscored"  # four tokens hold no box
    assert line in outputs[0]
    assert line not in outputs[1], "what was said before the resume is not said again"
    log = (folder / "train.log").read_text(errors="replace").splitlines()
    assert len([text for text in log if text.startswith(line)]) == 1


@pytest.fixture
def untied(tmp_path):
    """The demo's model with an output table of its own, as DeepSeek's: on ranks but the first it is loaded on meta."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ROOT / "models" / "demo")
    table = model.lm_head.weight.detach().clone()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(table)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(ROOT / "models" / "demo").save_pretrained(tmp_path)
    return tmp_path


def test_both_together_on_two_ranks_with_an_output_table_of_its_own(fork_server, untied):
    """Also what a GPU run logs and a CPU run does not: how far rollout and trainer agree on probabilities."""
    folder = experiment("test_overlong_verifier")
    ranks = ["trainer.n_gpus_per_node=2", "ray_kwargs.ray_init.num_gpus=2", "ray_kwargs.ray_init.num_cpus=9"]
    more = [f"actor_rollout_ref.model.path={untied}", "actor_rollout_ref.rollout.calculate_log_probs=true", *ranks]
    once = ["trainer.save_freq=-1", "trainer.val_before_train=false"]
    train(fork_server, folder.name, "overlong,robust_verifier", 2, PENALTY, *once, *more)
    metrics = read_metrics(folder / "metrics.jsonl")[2]
    assert metrics["reward/overlong"] > 0
    assert "reward/no_box" in metrics
    assert metrics["critic/score/min"] == -2
    assert metrics["training/rollout_probs_diff_mean"] < 5e-3, (
        "as bf16 in the trainer makes it; both have the same weights"
    )


IN_ORDER = ["data.shuffle=false", "data.max_response_length=64", "trainer.val_before_train=false"]
IN_ORDER += ["+trainer.v1.sampler.sampler_kwargs.poll_interval=0.2"]


def trained(folder, step):
    """Return the scores of a step's responses by the row of their prompt in the training set."""
    rows = pq.read_table(ROOT / "data" / "demo" / "train.parquet").column("prompt").to_pylist()
    place = {messages[0]["content"]: i for i, messages in enumerate(rows)}
    scores = defaultdict(list)
    for line in (folder / "rollouts" / f"{step}.jsonl").read_text().splitlines():
        response = json.loads(line)
        asked = response["input"].removeprefix("user\n").removesuffix("\nassistant\n").strip()
        scores[place[asked]].append(response["score"])
    return dict(scores)


def test_dynamic_sampling_trains_on_the_first_prompts_whose_responses_differ(fork_server):
    folder = experiment("test_dynamic_sampling")
    dump = f"trainer.rollout_data_dir={folder}/rollouts"
    train(fork_server, folder.name, "dynamic_sampling", 3, *IN_ORDER, dump, "trainer.save_freq=-1")
    metrics, begin, thrown = read_metrics(folder / "metrics.jsonl"), 0, 0
    for step in (1, 2, 3):
        scores, found = trained(folder, step), metrics[step]
        assert len(scores) == 32
        assert all(len(values) == 8 and len(set(values)) == 2 for values in scores.values())
        filtered = found["rollout/filtered_correct"] + found["rollout/filtered_incorrect"]
        generated = found["rollout/generated_prompts"]
        assert generated == 32 + filtered + found["rollout/discarded_prompts"]
        assert set(scores) <= set(range(int(begin), int(begin + generated))), "a step goes on where the last one ended"
        assert max(scores) + 1 - begin - 32 <= filtered, "no prompt before the last one was left out for another reason"
        unused = found["rollout/generated_tokens"] - 32 * 8 * found["response_length/mean"]
        assert (unused > 0.5) == (generated > 32), "it has what was thrown away"
        begin, thrown = begin + generated, thrown + filtered
    assert thrown > 0


def test_asynchronous_batches_are_one_step_old_and_a_restart_loses_and_repeats_no_prompt(fork_server):
    folder = experiment("test_async_one_step")
    same = [*IN_ORDER, f"trainer.rollout_data_dir={folder}/rollouts", "trainer.save_freq=3"]
    for steps in (3, 4):
        train(fork_server, folder.name, "async_one_step", steps, *same)
    metrics = read_metrics(folder / "metrics.jsonl")
    assert list(metrics) == [1, 2, 3, 4]
    for step, found in metrics.items():
        assert trained(folder, step).keys() == set(range(32 * (step - 1), 32 * step))
        assert found["training/off_policy/trajectory_staleness_worst/max"] <= 1
        assert found["rollout/generated_tokens"] == pytest.approx(32 * 8 * found["response_length/mean"])
    assert metrics[2]["training/off_policy/trajectory_staleness_worst/max"] == 1
