"""Every reader of a file, on damaged files: a result, or one line that names the file; nothing else.

READERS is the table: a new reader joins by a line.
"""

import copy
import json
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.json_lines import drop_damaged
from common.models import check_model
from common.processes import ProcessRecord
from data_prep import benchmarks
from data_prep.benchmarks import BENCHMARK_SCHEMA, benchmark_row
from data_prep.dapo import DATA_SOURCE, content_id
from data_prep.distinct import distinct_rows
from data_prep.rows import manifest_path, read_manifest, read_problem_rows, row, write_rows
from data_prep.verify import verify
from eval import judge, report, sections
from eval.engines import ModelSettings
from eval.grading import Cache
from eval.results import load
from eval.samples import read_samples, settings_of
from eval.tasks import check_fingerprint, wanted_samples
from tests.test_dapo import PAIRS, raw_rows
from tests.test_eval import write_samples
from tests.test_report import evaluation

SETTINGS = {"model": "m", "prompt": "evaluation", "temperature": 0.7, "top_p": 0.9, "max_tokens": 31744}
PROBLEMS = [("What is $1+1$?", "2"), ("Half a $\\frac{1}{2}$?", "0.5"), ("Ä?", "x")]
JUDGE = ModelSettings(model="some/judge", revision=None, workers=None, tensor_parallel=1, endpoint=["http://x"])


def json_lines(path, lines):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def samples(folder):
    write_samples(folder, "t", [r"\boxed{4}", "nö", "x", r"\boxed{5}"])
    return folder / "t.samples.jsonl"


def released(folder):
    line = {"prompt": "p", "answer": "4", "response": r"\boxed{4} ö"}
    lines = [{"example_id": i // 2, "seed": i, **line} for i in range(4)]
    return json_lines(folder / "demo_t0.7_p0.9_n2-MNT31744.jsonl", lines)


def meta(folder):
    return samples(folder).with_name("t.meta.json")


def cache(folder):
    lines = [{"key": "a", "value": "match"}, {"key": "b", "value": 0.5}, {"key": "c", "value": None}]
    return json_lines(folder / "grades.cache.jsonl", lines)


def grades(folder):
    return evaluation(folder, "m", {"t": [0, 1, 0.5]}) / "t.grades.jsonl"


def scores(folder):
    path = evaluation(folder, "m", {"t": [0, 1, 0.5], "u": [1, 1]}, judged=True) / "scores.json"
    given = json.loads(path.read_text()) | {"judge": {"model": "j", "audit": 0.05}}
    protocol = {"prompt": "training", "temperature": 0.7, "top_p": 0.9, "max_tokens": 64}
    path.write_text(json.dumps(given | {"protocol": {"t": protocol, "u": protocol}}))
    return path


def judgements(folder):
    line = {"judge": ["some/judge", None, None, 1], "question": ["p", "4", "5"], "verdict": "A"}
    return json_lines(folder / "judgements.jsonl", [line] * 3)


def training_set(folder):
    rows = [row(DATA_SOURCE, *pair, content_id(*pair), "train") for pair in PROBLEMS]
    found = {"t": {"problem_ids": ["t-0"], "problems": 3}}
    manifest = {"settings": {"conflicts": "drop", "decontaminate": "report"}, "contamination": found}
    write_rows(folder / "train.parquet", rows, manifest, repeat=2)
    evaluation(folder, "m", {"t": [0, 1, 0.5]})
    return folder / "train.parquet"


def benchmark(folder):
    rows = [benchmark_row("AIME24", i, *pair, None) for i, pair in enumerate(PROBLEMS)]
    write_rows(folder / "AIME24.parquet", rows, {"source": "x"}, schema=BENCHMARK_SCHEMA)
    return folder / "AIME24.parquet"


def raw_lines(folder):
    return json_lines(folder / "raw.jsonl", raw_rows(PAIRS[:5]))


def raw_parquet(folder):
    pq.write_table(pa.Table.from_pylist(raw_rows(PAIRS)), folder / "raw.parquet")
    return folder / "raw.parquet"


def processes(folder):
    return json_lines(folder / "processes.json", [{"boot": "another", "processes": {"1": 5}}])


def model(folder):
    (folder / "tokenizer.json").write_text("{}")
    return json_lines(folder / "config.json", [{"max_position_embeddings": 64, "layers": [1, 2.5]}])


def asked(path):
    wanted_samples(path.stem, read_problem_rows(path), "evaluation", 2, 0)


def page(path):
    report.evaluation_context({"m": load(path.parent)}, path.parent, {}, None)
    json.dumps(load(path.parent), allow_nan=False)


READERS = {
    "samples": (samples, read_samples),
    "samples that are continued": (samples, drop_damaged),
    "released samples": (released, lambda path: read_samples(path, "demo")),
    "settings": (meta, lambda path: settings_of(path.with_name("t.samples.jsonl"), "t")),
    "settings that are continued": (meta, lambda path: check_fingerprint(path, SETTINGS)),
    "cache of grades": (cache, Cache),
    "grades": (grades, lambda path: report.examples(path.parent)),
    "scores": (scores, page),
    "judgements": (judgements, lambda path: judge.ask([], path.parent, JUDGE)),
    "manifest": (
        lambda folder: manifest_path(training_set(folder)),
        lambda path: verify(path.with_name("train.parquet")),
    ),
    "manifest in a report": (
        lambda folder: manifest_path(training_set(folder)),
        lambda path: sections.clean({"m": load(path.parent)}, path),
    ),
    "manifest of a training set that is there": (
        lambda folder: manifest_path(training_set(folder)),
        lambda path: read_manifest(path.with_name("train.parquet")),
    ),
    "training set": (training_set, read_problem_rows),
    "training set that is verified": (training_set, verify),
    "benchmark": (benchmark, asked),
    "benchmark that is verified": (benchmark, verify),
    "benchmarks to compare with": (benchmark, lambda path: benchmarks.read_problems(path.parent)),
    "source, JSON lines": (raw_lines, lambda path: distinct_rows([path])),
    "source, parquet": (raw_parquet, lambda path: distinct_rows([path])),
    "benchmark's source, JSON lines": (raw_lines, lambda path: benchmarks.read_pairs(path, "AIME24")),
    "benchmark's source, parquet": (raw_parquet, lambda path: benchmarks.read_pairs(path, "AIME24")),
    "processes": (processes, lambda path: ProcessRecord(path.parent).end_stale()),
    "model's config": (model, lambda path: check_model(str(path.parent), 8)),
}

PARQUET = (training_set, benchmark, raw_parquet)
JSON_READERS = [name for name, (make, _) in READERS.items() if make not in PARQUET]


class Damage(NamedTuple):
    """At `place`, a fraction of the file, `removed` bytes give way to others."""

    place: float
    removed: int
    added: bytes


ADDED = [b"", b"\xff", b"\0", b"\n", b"\r\n", b'"', b"{", b"]", b",", b"-", b"7", b"e", b" ", b"\xef\xbb\xbf", b"\xe4"]
ADDED += [b"null", b"NaN", b"true", b"1e999", b"\\ud83d", b"{}\n", b"[1]\n", b"[" * 2000, b"9" * 5000]
DAMAGES = st.lists(
    st.builds(
        Damage, st.floats(0, 1), st.sampled_from([0, 1, 1, 2, 8, 50]), st.sampled_from(ADDED) | st.binary(max_size=4)
    ),
    min_size=1,
    max_size=3,
)
VALUES = [None, float("nan"), float("inf"), True, -1, 2.5, 10**30, "", "x"]
VALUES += ["ä\n", [], {}, [None], {"a": 1}, [[1]], "\ud83d"]
# For an object of JSON: which of its values, counted in depth, becomes another one, or is missing.
SPOILED = st.lists(st.tuples(st.integers(0, 60), st.sampled_from([*VALUES, KeyError])), min_size=1, max_size=2)


def damaged(content: bytes, damages: list[Damage]) -> bytes:
    for damage in damages:
        at = int(damage.place * len(content))
        content = content[:at] + damage.added + content[at + damage.removed :]
    return content


def places(value) -> list[tuple]:
    """List the container and key of every value inside one."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in ((value, key), *places(inner))]


def spoiled(content: bytes, changes: list[tuple]) -> bytes:
    """Put other values into the JSON objects of a file, of one or of lines."""
    lines = [content] if content.lstrip().startswith(b"{\n") else content.splitlines()
    whole = [json.loads(line) for line in lines]
    for number, other in changes:
        found = places(whole)
        if not found:
            break
        container, key = found[number % len(found)]
        if other is KeyError:
            del container[key]
        else:
            container[key] = copy.deepcopy(other)
    return "".join(json.dumps(value) + "\n" for value in whole).encode()


def raised(path: Path, reader) -> Exception | None:
    try:
        reader(path)
    except (ValueError, OSError) as error:
        return error
    return None


def read(path: Path, reader) -> None:
    """Read a file; what is raised must be one line with its name, or its folder's for settings that differ."""
    if error := raised(path, reader):
        assert path.name in str(error) or f"{path.parent}: " in str(error), error
        assert len(str(error).splitlines()) == 1, error
        assert len(str(error)) < 600, error


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Map readers to a file that is in order, its content, and what reads it; no pictures are drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw", lambda results, scores, folder: [])
        made = {name: make(tmp_path_factory.mktemp("readers")) for name, (make, _) in READERS.items()}
        yield {name: (path, path.read_bytes(), READERS[name][1]) for name, path in made.items()}


quickly = settings(max_examples=80, derandomize=True, suppress_health_check=list(HealthCheck), database=None)


@pytest.mark.parametrize("name", READERS)
def test_what_is_in_order_is_read(prepared, name):
    path, content, reader = prepared[name]
    path.write_bytes(content)
    if "benchmark's source" not in name:  # which wants all 30 problems
        reader(path)


@pytest.mark.parametrize("name", READERS)
@quickly
@given(damages=DAMAGES)
def test_damaged_bytes(prepared, name, damages):
    path, content, reader = prepared[name]
    path.write_bytes(damaged(content, damages))
    read(path, reader)


@pytest.mark.parametrize("name", JSON_READERS)
@quickly
@given(changes=SPOILED)
def test_values_of_another_kind(prepared, name, changes):
    path, content, reader = prepared[name]
    path.write_bytes(spoiled(content, changes))
    read(path, reader)


@pytest.mark.parametrize("name", JSON_READERS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8-sig", "cp037"])
def test_other_encodings(prepared, name, encoding):
    path, content, reader = prepared[name]
    path.write_bytes(content.decode().encode(encoding))
    read(path, reader)


@pytest.mark.parametrize("name", JSON_READERS)
def test_a_folder_in_a_files_place(prepared, name):
    path, content, reader = prepared[name]
    path.unlink()
    path.mkdir()
    read(path, reader)
    path.rmdir()
    path.write_bytes(content)


def test_too_many_digits_are_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": ' + "9" * 5000 + "}\n{}\n")
    (line,) = drop_damaged(tmp_path / "x.jsonl")
    assert line.problem.startswith("has an integer of too many digits")
