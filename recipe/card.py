"""The card of a run's model: how it was trained, on what, how it scores, and what of this is not known.

Scores are those of the run's `report.json`, which eval.report writes; the rest is read from the run's own files. A card
is public: of a path it has the name alone.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jinja2
import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.command import first_line
from common.files import atomic, write_text
from common.json_lines import misfit, read_json, read_shapes
from common.markdown import percent
from common.models import is_hub_id, model_digest, public_name
from common.processes import REPOSITORY
from common.progress import duration
from data_prep.prompt import BOXED_SENTENCE
from data_prep.rows import manifest_path
from recipe import paper
from recipe.arms import arms, missing_arms, title
from recipe.check import STATUSES, Comparison, comparison, expected_and_actual
from recipe.distillation import TEACHER
from recipe.monitor.compute import compute, compute_rows
from recipe.monitor.config import read_config
from recipe.monitor.events import STARTED, read_events, restarts, seconds_lost
from recipe.monitor.health import warnings
from recipe.monitor.metrics import REWARD, format_metric, has_training, read_metrics, validation_scores
from recipe.monitor.report import draw_figures
from recipe.preflight import as_list
from recipe.reward_file import OURS
from recipe.run_id import run_id
from recipe.software import software

CARD, RUN_KEY, MODEL, FILES = "README.md", "justrl_run", "actor_rollout_ref.model.path", "data.train_files"
SCORES, FIGURES = "scores.png", ("scores.png", "curves.png", "details.png")
SHAPES = read_shapes(Path(__file__).parent)
TEMPLATE = Path(__file__).with_name("card.md.j2")
GIVE, ANEW = "give the folder of a run, outputs/<experiment>", "each start of the run writes it anew"
ESTIMATORS = {"grpo": "GRPO", "grpo_passk": "GRPO pass@k", "rloo": "RLOO"}
ESTIMATORS |= {"reinforce_plus_plus_baseline": "REINFORCE++"}


def shown(value: Any) -> str:
    """Format a value for a table of the card: of a path, alone or in a list, only its name."""
    if isinstance(value, (list, tuple, ListConfig)):
        return ", ".join(map(shown, value))
    return public_name(str(value)).replace("|", r"\|")


def compared(config: DictConfig) -> list[Comparison]:
    """Compare a run's config with what the paper and its release state; training refuses what was not allowed."""
    comparisons = []
    for stated in paper.VALUES:
        expected, actual = expected_and_actual(config, stated)
        if str(actual).endswith(f"/{expected}"):  # a file of this repository, where it was when the run started
            actual = expected
        comparisons.append(comparison(stated, expected, actual, allowed=True))
    return comparisons


def found(read: Callable[[Any], Any], source: Path | str) -> Any:
    """Return what `read` reads of a file or hub id; None if it is not there, is damaged or cannot be reached."""
    try:
        return read(source)
    except (OSError, ValueError, yaml.YAMLError, httpx.HTTPError):
        return None


def read_head(card: Path | str) -> dict:
    return ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()


def base_model(model: str) -> tuple[str | None, dict[str, str]]:
    """Return a base model's hub id, and what the card in its folder or on the hub states of its license.

    The id is None unless the model is a backbone of the paper, or the hub has it: `ckpts/qwen` may have been a folder.
    """
    folder, hub_id = REPOSITORY / Path(model).expanduser(), paper.backbone(model)
    cards: list[Path | str] = [folder / CARD] if (folder / CARD).is_file() else []
    if not hub_id and not folder.is_dir() and is_hub_id(model):
        hub_id = model if found(read_head, model) or found(HfApi().model_info, model) else None
    for source in cards + ([hub_id] if hub_id else []):
        head = found(read_head, source) or {}
        if str(head.get("license") or "unknown").lower() != "unknown":
            return hub_id, {key: head[key] for key in ("license", "license_name", "license_link") if key in head}
    return hub_id, {}


def method(config: DictConfig) -> dict[str, Any]:
    """Return in words what a config trains with: `kind`, `signal`, `hyperparameters`, and the `tags` of it.

    It is not `rewarded` where a teacher takes the place of the reward, which then counts for the metrics alone.
    """
    reward, estimator = (
        OmegaConf.select(config, key) for key in ("reward.custom_reward_function.path", "algorithm.adv_estimator")
    )
    place = Path(str(reward)).parts[-2:]  # the checkout may have been elsewhere when the run started
    is_ours = place in [path.parts[-2:] for path in OURS]
    signal = "a rule reward" if is_ours else f"the reward `{shown(reward)}`" if reward else "verl's own reward"
    signal = f"{ESTIMATORS.get(estimator, f'the advantages `{estimator}`')} with {signal}"
    kind, tags = "reinforcement learning", [str(estimator).replace("_", "-"), "reinforcement-learning"]
    rewarded = True
    if OmegaConf.select(config, "distillation.enabled"):
        teacher = f"the log-probabilities of the teacher `{shown(OmegaConf.select(config, f'{TEACHER}.model_path'))}`"
        rewarded = bool(OmegaConf.select(config, "distillation.distillation_loss.use_task_rewards"))
        signal = f"{teacher} beside {signal}" if rewarded else f"{teacher} in place of a reward"
        kind, tags = "on-policy distillation", ["on-policy-distillation", *(tags if rewarded else [])]
    rate = OmegaConf.select(config, "actor_rollout_ref.actor.optim.lr_scheduler_type") or "constant"
    fixed = "fixed hyperparameters" if rate == "constant" else f"a learning rate that follows a schedule (`{rate}`)"
    words = {"kind": kind, "signal": signal, "hyperparameters": fixed}
    return words | {"rewarded": rewarded, "tags": ["justrl", "verl", *tags]}


def training_files(run: Path, config: DictConfig) -> list[tuple[str, dict | None]]:
    """Return name and manifest of each training file, None where it has no manifest; ValueError if one is damaged."""
    files = OmegaConf.select(config, FILES) or []
    names = as_list(files) if isinstance(files, (str, ListConfig)) else [""]
    if not all(isinstance(name, str) and Path(name).name for name in names):
        raise ValueError(f"{run}/config.yaml: damaged ({FILES} is {files}); {ANEW}")
    paths = [manifest_path(REPOSITORY / Path(name).expanduser()) for name in names]
    fix = "prepare the data again, or move this file away"
    manifests = [read_json(path, shape=SHAPES["manifest"], fix=fix) if path.is_file() else None for path in paths]
    return [(Path(name).name, made) for name, made in zip(names, manifests, strict=True)]


def training(run: Path, by_step: dict[int, dict], config: DictConfig) -> dict[str, Any]:
    """Return what the template shows of a run's training."""
    events, steps = read_events(run), [metrics for metrics in by_step.values() if has_training(metrics)]
    if not steps or not OmegaConf.select(config, MODEL):
        raise ValueError(f"{run}: a card needs a training step in metrics.jsonl and {MODEL} in config.yaml; {GIVE}")
    recorded = [event for event in events if event["event"] == STARTED and not misfit(event, SHAPES["software"])]
    check = run / "check.txt"
    gone = [f"`{name}`: an arm whose file this repository no longer has" for name in missing_arms(config)]
    return {
        "name": str(OmegaConf.select(config, "trainer.experiment_name") or run.resolve().name),
        "method": method(config),
        "arms": [title(arm) for arm in arms(config)] + gone,
        "compared": compared(config),
        "check": check.read_text(errors="replace").rstrip().rpartition("\n")[2] if check.is_file() else "",
        "rewards": [format_metric(metrics, REWARD) for metrics in (steps[0], steps[-1])],
        "compute": [row.texts()[:2] for row in compute_rows(compute(by_step, config), config, "DeepSeek")],
        "warnings": warnings(by_step, config),
        "restarts": (len(restarts(events)), duration(seconds_lost(events))),
        "software": recorded[-1] if recorded else software(),
        "data": training_files(run, config),
    }


def evaluated(run: Path, step: int, exported: Path | None) -> tuple[dict, list[str]]:
    """Return a run's report, without `evaluations` where a step's scores are not its model's, and what is lacking.

    A step may have been trained again, in the same folder, since it was evaluated: eval.generate keeps a digest of what
    it sampled.

    Args:
        exported: the step's model, None where it has not been exported.
    """
    path, model, fix = run / "report.json", f"step_{step}", f"python -m eval.report {run} writes it"
    report = read_json(path, shape=SHAPES["report"], fix=fix) if path.is_file() else {}
    if model not in report.get("evaluations", {}):
        return report, [f"scores of step {step}: {path} has none; once it is evaluated, {fix}"]
    samples, kept = run / "eval" / model, report["evaluations"][model].get("tasks")
    graded = samples / "scores.json"
    there = read_json(graded, fix=f"python -m eval.grade {samples}").get("tasks") if graded.is_file() else None
    if not (isinstance(kept, dict) and isinstance(there, dict) and kept.items() <= there.items()):
        lack = f"scores of step {step}: those in {path} are not those in {samples}; once it is evaluated, {fix}"
        return report | {"evaluations": {}}, [lack]
    again = f"delete {samples} and evaluate again"
    settings = [read_json(meta, shape=SHAPES["sampled"], fix=again) for meta in sorted(samples.glob("*.meta.json"))]
    sampled, own = {made.get("files") for made in settings} - {None}, exported and model_digest(str(exported))
    if own and sampled - {own}:
        lack = f"scores of step {step}: {samples} has samples of other weights than {exported}; {again}"
        return report | {"evaluations": {}}, [lack]
    if own and sampled:
        return report, []
    why = f"{samples} states no digest of them" if own else "its model is not exported; --push does it"
    return report, [f"a check that the scores are of these weights: {why}"]


def context_of(run: Path, step: int, exported: Path | None) -> tuple[dict[str, Any], DictConfig, list[str]]:
    """Return what the template shows but the figures, the run's config, and what the card lacks, a line each."""
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run}: has no config.yaml; {GIVE}")
    by_step, config = read_metrics(run / "metrics.jsonl"), read_config(run / "config.yaml", complete=True)
    context, (report, lacks) = training(run, by_step, config), evaluated(run, step, exported)
    name, scored = OmegaConf.select(config, MODEL), f"step_{step}" in report.get("evaluations", {})
    base, stated = base_model(name)
    if not base and not (REPOSITORY / Path(name).expanduser()).is_dir():
        lacks.append(f"the base model: {name} is no folder here, and the hub has no such model or cannot be reached")
    lacks += [] if stated else ["a license: found no card of the base model that states one"]
    lacks += [f"the origin of {file}: it has no manifest" for file, made in context["data"] if not made]
    of_data = [made.get("sha256_out") for _, made in context["data"] if made]
    is_own = len(context["data"]) == 1 and of_data[:1] not in ([], [None])
    clean = scored and is_own and report.get("manifest", {}).get("sha256_out") == of_data[0]
    if scored and report["tables"].get("clean") and not clean:
        lacks.append("scores without the problems in the training set: the report's are of another training set")
    context |= {"step": step, "model": f"step_{step}", "report": report, "scored": scored, "clean": clean}
    context |= {"base": base, "license": stated, "validation": validation_scores(by_step.get(step, {}))}
    context |= {"total": OmegaConf.select(config, "trainer.total_training_steps")}
    context |= {"run_id": run_id(run, context["name"], by_step), "by_step": by_step}
    return context, config, lacks


def head_of(context: dict[str, Any]) -> ModelCardData:
    """Return the head of a card, which the hub and recipe.push read."""
    sources = [made.get("source") for _, made in context["data"] if made and made.get("revision")]
    named = dict.fromkeys(source for source in sources if isinstance(source, str) and is_hub_id(source))
    keys: dict[str, Any] = {"license": "unknown"} | context["license"]
    return ModelCardData(
        base_model=context["base"],
        datasets=list(named) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=context["method"]["tags"],
        **keys,
        **{RUN_KEY: context["run_id"], "justrl_step": context["step"]},
    )


def write(run: Path, step: int, folder: Path, exported: Path | None = None) -> list[str]:
    """Write the card of a step and its figures into `folder`; return what the card lacks, a line each.

    A file of the run that is missing or damaged is a ValueError of one line.

    Args:
        exported: the step's model, to see whether the scores are of it.
    """
    try:
        context, config, lacks = context_of(run, step, exported)
        drawn = context["scored"] and (run / SCORES).is_file()
        context["curves"] = draw_figures(context["by_step"], config, folder, "")
        context |= {"drawn": drawn, "statuses": STATUSES, "sentence": BOXED_SENTENCE, "shown": shown}
        context |= {"value": lambda key: shown(OmegaConf.select(config, key))}
        rendering: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
        environment = jinja2.Environment(**rendering)
        environment.filters["percent"] = lambda cell, sign="": "-" if cell is None else percent(cell, sign)
        text = environment.from_string(TEMPLATE.read_text()).render(context)
    except OmegaConfBaseException as error:
        raise ValueError(f"{run}/config.yaml: damaged ({first_line(error)}); {ANEW}") from error
    for figure in FIGURES:  # those for pages, and what another card of this step had
        (folder / figure).with_suffix(".svg").unlink(missing_ok=True)
        if figure not in [*context["curves"], *([SCORES] if drawn else [])]:
            (folder / figure).unlink(missing_ok=True)
    if drawn:
        with atomic(folder / SCORES) as aside:
            shutil.copyfile(run / SCORES, aside)
    write_text(folder / CARD, f"---\n{head_of(context).to_yaml()}\n---\n\n{text}\n")
    return lacks
