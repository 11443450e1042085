"""The card of a run's model: how it was trained, on what, how it scores, and what of this is not known.

Scores are those of the run's `report.json`, which eval.report writes; the rest is read from the run's own files.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import jinja2
import yaml
from huggingface_hub import ModelCard, ModelCardData
from omegaconf import DictConfig, OmegaConf

from common.files import atomic, digest, write_text
from common.json_lines import read_json, read_shapes
from common.models import is_hub_id
from common.processes import REPOSITORY
from common.progress import duration
from data_prep.prompt import BOXED_SENTENCE
from data_prep.rows import read_manifest
from recipe import paper
from recipe.arms import arms, title
from recipe.check import STATUSES, Comparison, comparison, expected_and_actual
from recipe.monitor.compute import compute, compute_rows
from recipe.monitor.config import read_config
from recipe.monitor.events import STARTED, read_events, restarts, seconds_lost
from recipe.monitor.health import warnings
from recipe.monitor.metrics import REWARD, format_metric, has_training, read_metrics, validation_scores
from recipe.monitor.report import draw_figures
from recipe.preflight import as_list
from recipe.software import software

CARD, RUN_KEY, MODEL = "README.md", "justrl_run", "actor_rollout_ref.model.path"
SHAPE = read_shapes(Path(__file__).parent)["report"]
TEMPLATE = Path(__file__).with_name("card.md.j2")


def shown(value: Any) -> str:
    """Format a value of a config for a table; of a path outside the repository only its name: a card is public."""
    text = str(value).replace("|", r"\|")
    return Path(text).name if text.startswith(("/", "~")) else text


def compared(config: DictConfig) -> list[Comparison]:
    """Compare a run's config with what the paper and its release state; training refuses what was not allowed."""
    found = []
    for stated in paper.VALUES:
        expected, actual = expected_and_actual(config, stated)
        if str(actual).endswith(f"/{expected}"):  # a file of this repository, where it was when the run started
            actual = expected
        found.append(comparison(stated, expected, actual, allowed=True))
    return found


def base_model(model: str) -> tuple[str | None, dict[str, str]]:
    """Return a base model's hub id, if it has one, and what the card in its folder or on the hub has of its license."""
    folder = REPOSITORY / Path(model).expanduser()
    hub_id = paper.backbone(model) or (model if not folder.is_dir() and is_hub_id(model) else None)
    sources: list[Path | str] = [folder / CARD] if (folder / CARD).is_file() else []
    for source in sources + ([hub_id] if hub_id else []):
        try:
            data = ModelCard.load(source, ignore_metadata_errors=True).data.to_dict()
        except (OSError, ValueError, yaml.YAMLError, httpx.HTTPError):  # no card, a damaged one, or no network
            continue
        if data.get("license"):
            return hub_id, {key: data[key] for key in ("license", "license_name", "license_link") if key in data}
    return hub_id, {}


def training(run: Path, by_step: dict[int, dict], config: DictConfig) -> dict[str, Any]:
    """Return what the template shows of a run's training."""
    events, steps = read_events(run), [metrics for metrics in by_step.values() if has_training(metrics)]
    if not steps or not OmegaConf.select(config, MODEL):
        raise ValueError(
            f"{run}: a card needs a training step in metrics.jsonl and {MODEL} in config.yaml; is it a run's?"
        )
    recorded = [event for event in events if event["event"] == STARTED and "versions" in event]
    files, check = as_list(OmegaConf.select(config, "data.train_files") or []), run / "check.txt"
    return {
        "name": str(OmegaConf.select(config, "trainer.experiment_name") or run.resolve().name),
        "arms": [title(arm) for arm in arms(config)],
        "compared": compared(config),
        "check": check.read_text(errors="replace").rstrip().rpartition("\n")[2] if check.is_file() else "",
        "rewards": [format_metric(metrics, REWARD) for metrics in (steps[0], steps[-1])],
        "compute": [row.texts()[:2] for row in compute_rows(compute(by_step, config), config, "DeepSeek")],
        "warnings": warnings(by_step, config),
        "restarts": (len(restarts(events)), duration(seconds_lost(events))),
        "software": recorded[-1] if recorded else software(),
        "data": {Path(file).name: read_manifest(REPOSITORY / Path(file).expanduser()) for file in files},
    }


def write(run: Path, step: int, folder: Path) -> list[str]:
    """Write the card of a step and its figures into `folder`; return what the card lacks, a line each.

    A file of the run that is missing or damaged is a FileNotFoundError or a ValueError of one line.
    """
    by_step, config = read_metrics(run / "metrics.jsonl"), read_config(run / "config.yaml", complete=True)
    context, path, model = training(run, by_step, config), run / "report.json", f"step_{step}"
    fix = f"python -m eval.report {run} writes it"
    report = read_json(path, shape=SHAPE, fix=fix) if path.is_file() else {}
    scored = model in report.get("evaluations", {})
    base, license_keys = base_model(OmegaConf.select(config, MODEL))
    drawn = scored and (run / "scores.png").is_file()
    if drawn:
        with atomic(folder / "scores.png") as aside:
            shutil.copyfile(run / "scores.png", aside)
    sources = [made.get("source") for made in context["data"].values() if made and made.get("revision")]
    # What a resume keeps on any machine, and what no other run has, be it of the same config.
    run_id = digest([context["name"], json.dumps(by_step[min(by_step)], sort_keys=True)])
    keys: dict[str, Any] = {"license": "unknown"} | license_keys | {RUN_KEY: run_id, "justrl_step": step}
    head = ModelCardData(
        base_model=base,
        datasets=sources or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["justrl", "verl", "grpo", "reinforcement-learning"],
        **keys,
    )
    context |= {"step": step, "model": model, "report": report, "scored": scored, "drawn": drawn}
    context |= {"base": base, "license": license_keys, "validation": validation_scores(by_step.get(step, {}))}
    context |= {"value": lambda key: shown(OmegaConf.select(config, key)), "statuses": STATUSES}
    context["curves"] = draw_figures(by_step, config, folder, "")
    rendering: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    text = jinja2.Template(TEMPLATE.read_text(), **rendering).render(context, shown=shown, sentence=BOXED_SENTENCE)
    write_text(folder / CARD, f"---\n{head.to_yaml()}\n---\n\n{text}\n")
    lacks = [] if scored else [f"scores of step {step}: {path} has none; once it is evaluated, {fix}"]
    lacks += [] if license_keys else ["a license: found no card of the base model that states one"]
    return lacks + [f"the origin of {name}: it has no manifest" for name, made in context["data"].items() if not made]
