"""The pages for a browser: contents and figures of the report's, and the one of samples side by side."""

import html
import json
import math
import re

import pytest

from common.figures import COLOURS, panels, save
from common.svg import MARKS, show_values
from eval import report
from eval.side_by_side import CHARACTERS, shortened
from recipe.monitor.report import draw_line
from tests.test_report import chromium, evaluation, make_run


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a run with two evaluations, whose folder has the one of samples as well."""
    return (report.write([make_run(tmp_path_factory.mktemp("page") / "run")]) / "report.html").read_text()


def test_every_link_and_reference_of_the_page_leads_to_one_place(page):
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "figures may not take each other's clip paths and markers"
    links = re.findall(r'<a href="#([^"]+)"', page)
    assert links[:3] == ["top", "step_3-against-base-over-the-same-problems", "by-grader"]
    used = re.findall(r"url\(#([^)]+)\)", page) + re.findall(r'<use [^>]*href="#([^"]+)"', page)
    assert {*links, *used} <= {*ids}
    assert len(used) > 100


def test_marks_of_the_figures_have_their_values(page):
    titles = re.findall("<title>(.*?)</title>", page.split("<body>")[1])
    assert any(re.fullmatch(r"step_3, demo: 50\.0 \[\d.*\] percent", title) for title in titles)
    assert "base: pass@2 0.0 percent" in titles
    assert "base, 0 to 1,000 tokens: 3 correct" in titles
    assert sum(title.startswith("step 3: ") for title in titles) > 5


def test_figures_take_the_colours_and_the_font_of_the_page(page):
    body = page.split("<body>")[1]
    assert f"var(--c0, {COLOURS[0]})" in body
    assert not re.search("(?<!, )#(000000|ffffff)", body), "they cannot be seen on a dark or a light page"
    assert "font-family: " not in body
    dark = page.split("(prefers-color-scheme: dark)")[1].split("}")[0]
    assert re.findall(r"--c(\d):", dark) == [str(i) for i in range(len(COLOURS))]


def test_the_figure_of_a_long_run_stays_small(tmp_path):
    """A number is missing within: the others keep their own values."""
    figure, (axis,) = panels(1)
    draw_line(axis, {step: math.sin(step / 7) for step in range(5000)}, COLOURS[0], label="set")
    show_values(axis, [1, 2, 3], [0.5, math.nan, 0.25], ["one", "two", "three"], COLOURS[1])
    save(figure, tmp_path / "long.png")
    svg = (tmp_path / "long.svg").read_text()
    assert len(svg) < 150_000
    titles = re.findall("<title>(.*?)</title>", svg)
    assert titles[-2:] == ["one", "three"]
    assert MARKS / 2 < len(titles) - 2 <= MARKS
    assert titles[0].startswith("set, step 50: ")
    assert titles[0].endswith(" (mean of 100 steps)")


def test_a_run_alone_has_its_reward_as_verdict(tmp_path):
    folder = report.write([make_run(tmp_path / "run")])
    evaluated = json.loads((folder / "report.json").read_text())
    assert evaluated["verdict"].startswith("step_3 cannot be told apart from base on demo: ")
    for path in folder.glob("eval/*/scores.json"):
        path.unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    for step, start in ((3, "Training has come to step 3 of 20; "), (20, "Training has finished its 20 steps; ")):
        (folder / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last | {"step": step})]) + "\n")
        found = json.loads((report.write([folder]) / "report.json").read_text())["verdict"]
        assert re.fullmatch(rf"{re.escape(start)}the mean reward went from [+-]\d\.\d+ to [+-]\d\.\d+\.", found)
        assert f"**{found}**" in (folder / "report.md").read_text()
        assert f"<strong>{found}</strong>" in (folder / "report.html").read_text()
    (folder / "metrics.jsonl").write_text(f"{lines[0]}\n")
    assert "**No step has been trained yet.**" in (report.write([folder]) / "report.md").read_text()


def test_several_models_are_counted_in_the_verdict(tmp_path, no_pictures):
    scores = {"a": [0.25] * 20, "b": [0.75] * 20, "c": [0.25] * 20, "d": [0.0] * 20, "e": [1.0] * 20}
    folders = [evaluation(tmp_path / name, name, {"AIME24": values}) for name, values in scores.items()]
    text = (report.write(folders, tmp_path / "out") / "report.md").read_text()
    assert "**Of 4 models compared with a on AIME24: 2 better, 1 cannot be told apart, 1 worse.**" in text
    text = (report.write(folders[:1], tmp_path / "one") / "report.md").read_text()
    assert re.search(r"\*\*a answers 25\.0 \[\d.*\] percent correctly on AIME24\.\*\*", text)


def graded(folder, model, correct, response):
    """Write an evaluation of AIME24 whose problems' first samples are correct or not, and end in `response`."""
    evaluation(folder, model, {"AIME24": [0.5] * len(correct)}, judged=True)
    for name in ("samples", "grades"):
        path = folder / f"AIME24.{name}.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record, is_correct in zip(records, correct, strict=True):
            own = {"response": response, "tokens": 1234, "finish_reason": "length"}
            judged = {
                "rule": int(is_correct),
                "typed": 1,
                "typed_reason": "equal",
                "judge": None if is_correct else "A",
            }
            record |= own if name == "samples" else judged
        path.write_text("".join(json.dumps(record) + "\n" for record in [*records, records[0] | {"sample": 1}]))
    return folder


def articles(folder):
    """Return the outcome and the name of each problem of the page of samples."""
    return re.findall(r'<article class="(\w+)">\s*<h3>(.*?)</h3>', (folder / "samples.html").read_text())


def test_samples_stand_side_by_side_and_disagreements_come_first(tmp_path, no_pictures):
    hostile = '</pre><script>alert("x")</script><img src=x onerror=alert(1)> \ud83d half'
    first = graded(tmp_path / "a", "one/first", [1, 1, 0, 0], hostile)
    other = graded(tmp_path / "b", "two/<other>", [1, 0, 1, 0], "So 4")
    out = report.write([first, other], tmp_path / "out")
    assert articles(out) == [
        ("first", "AIME24-1"),
        ("second", "AIME24-2"),
        ("both", "AIME24-0"),
        ("neither", "AIME24-3"),
    ]
    text = (out / "samples.html").read_text()
    assert "All 4 problems are shown." in text
    assert (text.count("<script"), text.count("<img")) == (1, 0), "a response is text"
    assert html.escape(hostile.encode(errors="replace").decode(), quote=False) in text.replace("&#34;", '"')
    assert "<h4>&lt;other&gt;</h4>" in text
    for grade in (
        "official: incorrect (no_box)",
        "strict-typed: correct (equal)",
        "official+judge: correct (judge: A)",
    ):
        assert f">{grade}</span>" in text
    assert "1,234 tokens, cut off" in text
    assert "](samples.html)" in (out / "report.md").read_text()
    assert '<a href="samples.html">Samples side by side</a>' in (out / "report.html").read_text()


def test_the_page_of_samples_is_bounded_and_says_what_it_leaves_out(tmp_path, no_pictures):
    """Marks of which each takes five bytes: about 45 of 100 problems fit, the disagreements among them."""
    long = '"' * (CHARACTERS + 500)
    first = graded(tmp_path / "a", "first", [0] * 100, long)
    other = graded(tmp_path / "b", "other", [0] * 80 + [1] * 20, long)
    out = report.write([first, other], tmp_path / "out")
    shown = articles(out)
    assert [name for _, name in shown[:20]] == [f"AIME24-{i}" for i in range(80, 100)]
    assert 1_500_000 < (out / "samples.html").stat().st_size < 2_000_000
    text = (out / "samples.html").read_text()
    assert f"Shown are {len(shown)} of 100 problems" in text
    assert text.count("… 500 characters left out …") == 2 * len(shown)
    assert shortened("ab" * CHARACTERS) == ("ab" * (CHARACTERS // 4), CHARACTERS, "ab" * (CHARACTERS // 4))


def test_without_samples_of_both_there_is_no_page_of_them(tmp_path, no_pictures):
    first, other = (graded(tmp_path / name, name, [1, 0], "So 4") for name in "ab")
    (other / "AIME24.grades.jsonl").unlink()
    out = report.write([first, other], tmp_path / "out")
    assert not (out / "samples.html").exists()
    assert "samples.html" not in (out / "report.md").read_text() + (out / "report.html").read_text()
    with (first / "AIME24.grades.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match=r"AIME24\.grades\.jsonl, line 4: .*; grade again: python -m eval\.grade"):
        report.write([first], tmp_path / "out")


def test_samples_are_filtered_in_a_browser(tmp_path, no_pictures):
    first, other = (
        graded(tmp_path / "a", "a", [1, 1, 0, 0, 0], "So"),
        graded(tmp_path / "b", "b", [1, 0, 1, 1, 0], "So"),
    )
    text = (report.write([first, other], tmp_path / "out") / "samples.html").read_text()
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe style="width:390px;height:844px;border:0" srcdoc="{html.escape(text)}"></iframe><script>'
        "onload = () => { const d = document.querySelector('iframe').contentDocument;"
        "const form = d.querySelector('form'), seen = [d.documentElement.scrollWidth];"
        "for (const option of form.elements.outcome.options) { option.selected = true;"
        "form.dispatchEvent(new Event('change')); seen.push(form.querySelector('output').textContent);"
        "seen.push([...d.querySelectorAll('article')].filter(a => a.offsetHeight > 0).length) }"
        "document.title = seen.join(' '); }</script>"
    )
    dom, log = chromium("--dump-dom", frame.as_uri())
    assert re.search(r"<title>(.*?)</title>", dom)[1] == "390 5 shown 5 3 shown 3 1 shown 1 2 shown 2"
    assert "CONSOLE" not in log
