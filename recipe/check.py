"""Compare a config with the paper, value by value: python -m recipe.check justrl_deepseek [key=value ...]

Lists the differences from the values of the paper and its release, each with its source and what it affects, and
every other key that an override changes, unless it changes only speed, memory or logging. Then checks what the run
needs: data, model and reward files, batch sizes, lengths, disk, GPUs. Exit status: 0 the config matches the paper or
its differences are allowed, 1 it does not, 2 wrong use or something missing.

examples: python -m recipe.check justrl_nemotron --no-files --all
          python -m recipe.check justrl_deepseek data.train_batch_size=128 --allow data.train_batch_size
"""

import argparse
import fnmatch
import functools
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from common.command import Failure, name, run
from common.machine import device
from common.processes import REPOSITORY
from recipe import attention, preflight
from recipe.arms import choices
from recipe.compose import UNDECLARED_KEYS, compose_unresolved, config_names, resolve
from recipe.monitor.loggers import use_wandb
from recipe.paper import BACKBONES, VALUES, Value, backbone

# Keys that an override may change freely: names, paths, logging, speed and memory.
MACHINE = (
    "trainer.experiment_name",
    "trainer.project_name",
    "trainer.logger",
    "trainer.*_dir",
    "trainer.log_val_generations",
    "trainer.max_actor_ckpt_to_keep",
    "trainer.v1.sampler.sampler_kwargs",
    "justrl.stall_seconds",
    "justrl.alert",
    "distillation.nnodes",
    "distillation.n_gpus_per_node",
    "distillation.teacher_models.*.inference",
    "ray_kwargs",
    "transfer_queue",
    "global_profiler",
    "*.profiler",
    "*.prometheus",
    "*.trace",
    "*num_workers",
    "*.log_prob_*",
    "*.use_torch_compile",
    "*.entropy_from_logits_with_chunking",
    "*.enforce_eager",
    "*.free_cache_engine",
    "*.enable_chunked_prefill",
    "*.enable_prefix_caching",
    "*.engine_kwargs.vllm.kv_cache_memory_bytes",
    "*.checkpoint_engine",
    "*.nccl_timeout",
    "actor_rollout_ref.model.override_config.*attn_implementation",
    "actor_rollout_ref.actor.fsdp_config.*offload*",
    "actor_rollout_ref.actor.fsdp_config.strategy",
    "actor_rollout_ref.actor.fsdp_config.fsdp_size",
    "actor_rollout_ref.actor.fsdp_config.forward_prefetch",
    "actor_rollout_ref.actor.fsdp_config.reshard_after_forward",
)
ACKNOWLEDGED = ("justrl.allow", "justrl.arms")  # where arms say what they change
STATUSES = {  # with the style of a row and a word for the summary
    "same": ("", "match the paper"),
    "machine": ("dim", "differ in speed or memory only"),
    "allowed": ("yellow", "differ and are allowed"),
    "different": ("bold red", "differ"),
}


class Comparison(NamedTuple):
    """A stated value beside the config's; `status` is a key of STATUSES."""

    stated: Value
    expected: Any
    actual: Any
    status: str


def expected_and_actual(config: DictConfig, stated: Value) -> tuple[Any, Any]:
    """Put a stated value and the config's into comparable form."""
    # A key that verl does not declare is absent at its default, which is the stated value.
    undeclared = stated.key.startswith(tuple(UNDECLARED_KEYS))
    actual = OmegaConf.select(config, stated.key, default=stated.value if undeclared else None)
    actual = OmegaConf.to_container(actual) if OmegaConf.is_config(actual) else actual
    expected = stated.value
    model = backbone(config.actor_rollout_ref.model.path)
    if stated.key == "reward.custom_reward_function.path":
        same = actual and Path(actual).expanduser().resolve() == REPOSITORY / expected
        return expected, expected if same else actual
    if stated.key == attention.KEY:
        return expected, attention.beside_flash_attn(config)
    if stated.key == "data.val_files":
        return expected, [Path(file).name for file in preflight.as_list(actual)]
    if stated.key == "actor_rollout_ref.model.path":
        return model or " or ".join(BACKBONES), model or actual
    if stated.key == "trainer.total_training_steps":
        return BACKBONES[model]["steps"] if model else actual, actual
    return expected, actual


def flat(config: DictConfig) -> dict[str, Any]:
    """Map dotted keys to values, interpolations unresolved."""

    def walk(value, prefix: str):
        if not isinstance(value, dict) or not value:
            return {prefix: value}
        return {k: v for key, child in value.items() for k, v in walk(child, f"{prefix}.{key}".lstrip(".")).items()}

    return walk(OmegaConf.to_container(config), "")


def matches(key: str, entries: tuple[str, ...] | list[str]) -> bool:
    """Find an entry that is the key, a prefix of it (`data`), or a pattern of it (`*.val_kwargs.*`)."""
    return any(fnmatch.fnmatch(key, entry) or key.startswith(f"{entry}.") for entry in entries)


@functools.cache
def shipped_config(name: str, chosen: tuple[str, ...], device: str) -> tuple[DictConfig, dict[str, Any]]:
    """Compose a config with its arms alone, resolved and as dotted keys; read-only, since it is cached."""
    config = compose_unresolved(name, list(chosen), device)
    keys = flat(config)
    return resolve(config), keys


def compare(name: str, overrides: list[str], device: str, allow: list[str]) -> tuple[DictConfig, list[Comparison]]:
    """Compose a config, compare it with the paper, and compare all other keys with the config without overrides.

    An entry of `justrl.allow` allows the value that the file or arm has, a pattern in it any value; `allow` any value.

    Raises:
        ValueError: the config does not compose, or an entry of `allow` matches no key.
    """
    config, (_, base_keys) = compose_unresolved(name, overrides, device), shipped_config(name, (), device)
    shipped, shipped_keys = shipped_config(name, tuple(choices(overrides)), device)
    keys = flat(config)
    config = resolve(config)
    stated = {value.key for value in VALUES}
    for entry in allow:
        if not any(matches(key, [entry]) for key in keys.keys() | base_keys.keys() | stated):
            raise ValueError(f"--allow {entry}: no such key")
    own = [entry for entries in shipped.justrl.allow.values() for entry in entries]
    patterns = [*allow, *(entry for entry in own if "*" in entry)]
    found = []
    for value in VALUES:
        expected, actual = expected_and_actual(config, value)
        meant = matches(value.key, own) and actual == expected_and_actual(shipped, value)[1]
        if meant and value.key in own:  # what an arm lists is shown, also where it affects speed alone
            value = value._replace(machine=False)
        found.append(comparison(value, expected, actual, allowed=meant or matches(value.key, patterns)))
    for key in (keys | base_keys).keys() - stated:
        if keys.get(key) != base_keys.get(key) and not matches(key, ACKNOWLEDGED):
            meant = matches(key, own) and keys.get(key) == shipped_keys.get(key)
            expected = (base_keys if meant else shipped_keys).get(key)  # an override may also be of an arm's value
            value = Value(key, expected, "this recipe", "not stated", matches(key, MACHINE) and not meant)
            found.append(comparison(value, value.value, keys.get(key), allowed=meant or matches(key, patterns)))
    return config, found


def comparison(value: Value, expected: Any, actual: Any, allowed: bool) -> Comparison:
    """Give a comparison its status; True is not 1."""
    same = actual == expected and isinstance(actual, bool) == isinstance(expected, bool)
    status = "same" if same else "machine" if value.machine else "allowed" if allowed else "different"
    return Comparison(value, expected, actual, status)


def problem(comparisons: list[Comparison]) -> str:
    """Describe the differences that are not allowed in one line; "" without any."""
    different = [c for c in comparisons if c.status == "different"]
    if not different:
        return ""
    first = different[0]
    more = f" ({len(different) - 1} more differ; python -m recipe.check lists them)" if different[1:] else ""
    return (
        f"{first.stated.key}: expected {first.expected} ({first.stated.source}), got {first.actual}; "
        f"pass --allow {first.stated.key} to keep it{more}"
    )


def require_paper(comparisons: list[Comparison]) -> None:
    """Raise a ValueError of one line about the differences that are not allowed."""
    if line := problem(comparisons):
        raise ValueError(line)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for a config: its name, overrides and `--allow`."""
    parser.add_argument("config", help=f"one of {', '.join(config_names())}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides, which win over the file")
    allow = "allow a difference from the paper: a key, the beginning of keys, or a pattern; may be repeated"
    parser.add_argument("--allow", type=name, action="append", default=[], metavar="KEY", help=allow)


def table(comparisons: list[Comparison]) -> Table:
    rows = Table(box=None, pad_edge=False)
    for title in ("key", "paper", "this config", "", "source", "affects"):
        rows.add_column(title, no_wrap=title == "key")
    for c in comparisons:
        words = (str(c.expected), "" if c.status == "same" else str(c.actual), "" if c.status == "same" else c.status)
        rows.add_row(c.stated.key, *words, c.stated.source, c.stated.affects, style=STATUSES[c.status][0])
    return rows


def report(comparisons: list[Comparison], every: bool) -> None:
    """Print the differences in learning, or every comparison, and a summary."""
    shown = [c for c in comparisons if every or c.status in ("allowed", "different")]
    if shown:
        Console(width=None if sys.stdout.isatty() else 240, highlight=False).print(table(shown))
    counts = [f"{sum(c.status == name for c in comparisons)} {words}" for name, (_, words) in STATUSES.items()]
    print(f"{len(comparisons)} values checked: {', '.join(counts)}")


def as_json(comparisons: list[Comparison]) -> str:
    names = ("key", "expected", "actual", "status", "source", "affects")
    rows = [(c.stated.key, c.expected, c.actual, c.status, c.stated.source, c.stated.affects) for c in comparisons]
    return json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--all", action="store_true", help="list also what matches or differs in speed only")
    parser.add_argument("--no-files", action="store_true", help="do not check data, model, disk and machine")
    parser.add_argument("--json", action="store_true", help="print the comparisons as JSON")
    args = parser.parse_intermixed_args()
    config, comparisons = compare(args.config, args.overrides, device(), args.allow)
    use_wandb(config)
    if args.json:
        print(as_json(comparisons))
    else:
        report(comparisons, args.all)
    preflight.check_config(config)
    if not args.no_files:
        preflight.check_machine(config)
    if line := problem(comparisons):
        raise Failure(line)


if __name__ == "__main__":
    run(main)
