"""What evaluations show: python -m eval.report FOLDER [FOLDER ...] [--output DIR]

A FOLDER is a run's (outputs/<experiment>, with `metrics.jsonl` or evaluations under `eval/`) or one that eval.grade
filled (with `scores.json`). Writes `report.md`, `report.html` (one file, its figures inside), `report.json` (every
number) and the figures, into the one FOLDER or into --output; and `samples.html`, responses of the first and the last
model side by side, where both folders have samples and grades. Of several folders the first is compared with each
other one over the same problems; of a run among them its last evaluation counts. Several training runs alone, a
baseline's and those of arms, are compared in their training and last validation, by arm and over seeds.

examples:
  python -m eval.report outputs/demo
  python -m eval.report outputs/eval/JustRL-DeepSeek-1.5B outputs/mine --output outputs/compared
  python -m eval.report outputs/demo_hard_*seed* --output outputs/arms --x tokens --page docs/arms.md
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from omegaconf import OmegaConf

from common import command
from common.files import write_text
from common.processes import REPOSITORY
from data_prep.benchmarks import ALL, SUITES
from data_prep.rows import manifest_path
from eval import sections
from eval.figures import draw_lengths, draw_pass_at_k, draw_scores
from eval.published import PUBLISHED
from eval.results import Results, by_name, find, graded_checkpoints, load
from eval.runs import report as runs_report
from eval.samples import find_samples
from eval.side_by_side import first_samples, write_pairs
from eval.suites import of_suite
from eval.tables import MADE, Table, listed, page_path, render_markdown, render_page, write_page
from recipe.monitor.config import read_config
from recipe.monitor.report import training_section

AXES = runs_report.AXES
UNITS = "fractions are 0 to 1; lengths are tokens"
EXAMPLES, EXAMPLE_CHARACTERS = 3, 300


def examples(folder: Path) -> list[str]:
    """Show graded samples of some problems of an evaluation, correct ones first; none where only scores were kept."""
    samples = [sample for task in [*find_samples(folder)][:1] for sample in first_samples(folder, task).values()]
    shown = []
    for sample in sorted(samples, key=lambda sample: -sample["grade"]["rule"])[:EXAMPLES]:
        problem = (sample["prompt"] or "").split("\n")[0]
        response = sample["response"][-EXAMPLE_CHARACTERS:].encode(errors="replace").decode()  # half a character
        shown.append(f"{problem}\n{response}\n({sample['grade']['reason']}, answer {sample['answer']})")
    return shown


def draw(results: Results, scores: dict[str, dict], folder: Path) -> list[str]:
    """Draw the figures for which there are numbers, and return their names."""
    draw_scores(scores, folder / "scores.png")
    drawn, parts = ["scores.png"], [part for _, part in results.parts()]
    if any(len(part["tracks"][results.track]["pass"]) > 1 for part in parts):
        draw_pass_at_k(results, folder / "pass_at_k.png")
        drawn.append("pass_at_k.png")
    if any(models[name]["tokens"] for models in results.tasks.values() for name in (results.first, results.models[-1])):
        draw_lengths(results, folder / "lengths.png")
        drawn.append("lengths.png")
    return drawn


def default_manifest(folders: list[Path]) -> Path | None:
    """Return where the manifest of the one training file of these runs is, None if they have several, else DAPO's."""
    runs = [folder for folder in folders if (folder / "config.yaml").is_file()]
    files: set[str] = set()
    for run in runs:
        config = read_config(run / "config.yaml")
        listed = OmegaConf.select(config, "data.train_files", throw_on_resolution_failure=False)
        files.update([listed] if isinstance(listed, str) else map(str, listed if OmegaConf.is_list(listed) else ()))
    if not runs:
        return sections.MANIFEST
    return manifest_path(REPOSITORY / Path(files.pop()).expanduser()) if len(files) == 1 else None


def evaluation_context(scores: dict[str, dict], folder: Path, clean: dict, row: str | None) -> tuple[dict, dict]:
    """Return what the template shows of evaluations, their figures drawn into `folder`, and the tables by name.

    Args:
        clean: what `sections.clean` returned of them.
    """
    results = Results(scores)
    by_row = {row: results.scores(row, results.track) for row in results.rows}
    context = {
        "results": results,
        "solved": any(cell and cell["value"] for cells in by_row.values() for cell in cells.values()),
        "figures": draw(results, by_row, folder),
        "protocol": sections.protocol(scores),
        "differences": [sections.difference(results, model) for model in results.models[1:]],
        "published": sections.published(scores, row),
        "source": PUBLISHED["source"],
        "clean": clean,
        "failing": sections.failing_tracks(results),
    }
    tables = {
        "scores": Table([{"benchmark": results.label(row), **cells} for row, cells in by_row.items()]),
        **{found["name"]: found["table"] for found in context["differences"]},
        **{f"{found['model']} beside the published": found["table"] for found in context["published"]},
        "clean": clean.get("table"),
        "tracks": sections.track_table(results),
        "judge": sections.judge_table(results),
        "attempts": sections.attempt_table(results),
        "responses": sections.response_table(results),
    }
    return context, {name: table for name, table in tables.items() if table and table.rows}


def required(output: Path | None) -> Path:
    if output is None:
        raise ValueError("a report on several folders needs --output DIR")
    return output


def write(
    folders: list[Path],
    output: Path | None = None,
    manifest: Path | None = None,
    row: str | None = None,
    suite: str = ALL,
) -> Path:
    """Write a report and return its folder.

    Args:
        manifest: of the training set, in place of the one beside a run's own training file.
        row: of the published table, to put the last model beside.
        suite: whose benchmarks are reported.
    """
    alone = folders[0] if len(folders) == 1 else None
    folder = required(output or alone)
    found = find(folders)
    title = alone.resolve().name if alone else listed(found)
    scores = of_suite({name: load(evaluation) for name, evaluation in found.items()}, suite)
    clean = sections.clean(scores, manifest, default_manifest(folders)) if scores else {}
    context, tables = evaluation_context(scores, folder, clean, row) if scores else ({}, {})
    values = {name: table.rows for name, table in tables.items()}
    numbers = {"title": title, "units": UNITS, "tables": values} | ({"evaluations": scores} if scores else {})
    if clean:
        numbers["manifest"] = {"name": clean["manifest"].name, "sha256_out": clean["sha256_out"]}
    is_run = bool(alone and graded_checkpoints(alone))
    runs = by_name({run: run.name for run in folders})
    trainings = [(name, section) for name, run in runs.items() if (section := training_section(run, folder, name))]
    for name, section in trainings:
        values[f"compute of {name}"] = section.compute_table
        numbers[f"training of {name}"] = section.numbers
    context |= {
        **{"tables": tables, "is_run": is_run, "trainings": [section for _, section in trainings]},
        "examples": examples(list(found.values())[-1]) if found else [],
        "samples": write_pairs(context.get("results"), found, folder / "samples.html"),
    }
    if scores:  # of a run its last evaluation counts
        compared = context["differences"][-1:] if is_run else context["differences"]
        numbers["verdict"] = sections.verdict(context["results"], compared)
    else:
        numbers["verdict"] = next((section.verdict for _, section in trainings), "No step has been trained yet.")
    text = render_markdown("report.md.j2", title=title, verdict=numbers["verdict"], **context)
    write_text(folder / "report.md", text)
    write_text(folder / "report.html", render_page(title, text, folder, context["samples"]))
    write_text(folder / "report.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=command.path, nargs="+", metavar="FOLDER", help="of a run or an evaluation")
    parser.add_argument("--output", type=command.path, help="folder to write to; needed with several folders")
    manifest = f"manifest of the training set (default: of a run its own, else {sections.MANIFEST}, if it exists)"
    parser.add_argument("--manifest", type=command.path, help=manifest)
    parser.add_argument("--published", type=command.name, metavar="MODEL", help="row of the paper's table to compare")
    parser.add_argument("--suite", choices=SUITES, default=ALL, help="whose benchmarks are reported (%(default)s)")
    parser.add_argument("--x", choices=AXES, help="of several training runs: x-axis of the curves (default: steps)")
    parser.add_argument("--page", type=page_path, metavar="FILE.md", help="write the report as this page as well")
    args = parser.parse_args()
    if runs_report.are_runs(args.folders):
        folder = runs_report.write(args.folders, required(args.output), args.x or AXES[0], args.page)
    elif args.x:
        raise ValueError("--x is for several training runs alone; leave it out")
    else:
        folder = write(args.folders, args.output, args.manifest, args.published, args.suite)
        if args.page:
            made = f"\n{MADE}\n\n```\npython -m eval.report {shlex.join(sys.argv[1:])}\n```\n"
            write_page(args.page, (folder / "report.md").read_text(encoding="utf-8") + made, folder)
    print(f"  {folder}/report.md, report.html and report.json")


if __name__ == "__main__":
    command.run(main)
