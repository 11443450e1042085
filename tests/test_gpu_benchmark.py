"""benchmarks.gpu: what is done is not done again, a failure ends one section, the table says where it was measured."""

import json
import sys

import pytest

from benchmarks import gpu
from benchmarks.gpu_sections import SECTIONS, Bench
from tests.conftest import HANGING_SECONDS, ROOT


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("JUSTRL_DEVICE", "cpu")
    return Bench(tmp_path / "gpu", seconds=HANGING_SECONDS)


def test_a_section_that_is_done_is_skipped(bench):
    calls = []

    def section(bench):
        calls.append(bench.name)
        return {"step, seconds": 4.5, "utilization": {"training": 0.4}}

    assert gpu.measure("demo", section, bench)
    assert gpu.measure("demo", section, bench)
    assert calls == ["demo"]
    found = json.loads((bench.folder / "demo.json").read_text())
    assert found["figures"] == {"step, seconds": 4.5}
    assert found["utilization"] == {"training": 0.4}, "for recipe.plan --measured"
    assert found["hardware"]["versions"]["verl"] == "0.9.1"


def test_a_failed_section_is_printed_and_tried_again(bench, capsys):
    def fails(bench):
        raise RuntimeError("out of memory")

    assert not gpu.measure("long", fails, bench)
    assert "long: FAILED after 0 s: RuntimeError: out of memory" in capsys.readouterr().err
    assert not (bench.folder / "long.json").exists()


def test_a_command_that_fails_or_takes_too_long_ends_its_section(bench):
    bench.begin("kernels")
    with pytest.raises(RuntimeError, match="no_such_module exited with status 1, see"):
        bench.run("no_such_module")
    bench.seconds = 1
    bench.begin("kernels")
    with pytest.raises(RuntimeError, match="took more than 1 s; --seconds allows more"):
        bench.run("http.server", "--bind", "127.0.0.1", "0")


def test_the_table_names_the_machine_once_for_sections_measured_together(bench):
    for name in ("kernels", "demo"):
        gpu.measure(
            name, lambda bench: {"generation, seconds": 2.345678, "tokens": 12345.6, "attention": "packed_torch"}, bench
        )
    text = gpu.table(bench.folder)
    assert text.count("GPU: none") == 1
    assert "| kernels | measured |" in text
    assert "| generation, seconds | 2.35 |" in text
    assert "| tokens | 12,346 |" in text
    assert "| attention | packed_torch |" in text


def test_unknown_sections_are_wrong_use(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu", "kernel"])
    with pytest.raises(ValueError, match="unknown section 'kernel'; there are kernels, demo"):
        gpu.main()


@pytest.mark.slow
def test_the_kernels_of_this_machine_are_correct(bench):
    assert ROOT.is_dir()
    assert gpu.measure("kernels", SECTIONS["kernels"], bench)
    figures = json.loads((bench.folder / "kernels.json").read_text())["figures"]
    assert figures["log-probs in blocks, relative error"] < 1e-6


@pytest.mark.slow
@pytest.mark.usefixtures("demo_data")
def test_long_responses_of_a_random_model(bench):
    """A step of the paper's config on a model that is made on the spot, as a GPU machine would do it."""
    assert gpu.measure("long", SECTIONS["long"], bench)
    figures = json.loads((bench.folder / "long.json").read_text())["figures"]
    assert (figures["responses"], figures["tokens of each"]) == (16, 256)
    assert figures["update, seconds"] > 0
