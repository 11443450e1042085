"""The pages for a browser: contents and figures of the report's, and the one of samples side by side."""

import html
import json
import math
import re

import markdown_it
import pytest

from common.figures import COLOURS, file_name, panels, save
from common.markdown import escaped
from common.svg import MARKS, show_values
from eval import report
from eval.figures import draw_scores
from eval.samples import JUDGED, OFFICIAL
from eval.side_by_side import CHARACTERS, by_track, shortened
from eval.tables import render_page
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
    marks = re.findall(r'<g [^>]*style="([^"]*)"[^>]*class="values"|<g [^>]*class="values"[^>]*style="([^"]*)"', body)
    assert marks
    assert all(re.fullmatch(r"fill: var\(--c\d, #\w+\)", one or other) for one, other in marks)
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
    assert "All 4 problems of AIME24 with samples and grades of both are shown." in text
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
    assert f"Shown are {len(shown)} of the 100 problems of AIME24 with samples and grades of both, as" in text
    assert text.count("… 500 characters left out …") == 2 * len(shown)
    assert shortened("ab" * CHARACTERS) == ("ab" * (CHARACTERS // 4), CHARACTERS, "ab" * (CHARACTERS // 4))


def test_without_samples_of_both_there_is_no_page_of_them(tmp_path, no_pictures):
    first, other = (graded(tmp_path / name, name, [1, 0], "So 4") for name in "ab")
    assert (report.write([first, other], tmp_path / "out") / "samples.html").exists()
    (other / "AIME24.grades.jsonl").unlink()
    out = report.write([first, other], tmp_path / "out")
    assert not (out / "samples.html").exists()
    assert "samples.html" not in (out / "report.md").read_text() + (out / "report.html").read_text()
    with (first / "AIME24.grades.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match=r"AIME24\.grades\.jsonl, line 4: .*; grade again: python -m eval\.grade"):
        report.write([first], tmp_path / "out")


def test_an_audit_is_no_reason_for_what_the_rule_accepted():
    accepted, rejected = ({"rule": rule, "reason": "match" if rule else "wrong", "judge": "B"} for rule in (1, 0))
    assert by_track(accepted, [OFFICIAL, JUDGED]) == {OFFICIAL: (True, "match"), JUDGED: (True, "match")}
    assert by_track(rejected, [JUDGED]) == {JUDGED: (False, "judge: B")}


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


def test_runs_of_one_folder_name_keep_their_curves_and_figures_whatever_the_name(tmp_path, no_pictures):
    """A space ends a Markdown link, and an "=" an <img>, which the page's policy blocks."""
    name = "lr=1e-6 (é)"
    runs = [make_run(tmp_path / parent / name) for parent in "ab"]
    for path in tmp_path.glob("*/*/eval/step_3/scores.json"):
        path.unlink()
    log = runs[1] / "metrics.jsonl"
    log.write_text(log.read_text().replace('"step": 3', '"step": 9'))
    out = report.write(runs, tmp_path / "out")
    page = (out / "report.html").read_text()
    assert (page.count("<svg"), page.count("<img")) == (4, 0)
    numbers = json.loads((out / "report.json").read_text())
    assert {*numbers["evaluations"]} == {str(run / "eval" / "base") for run in runs}
    assert [max(map(int, numbers[f"training of {run}"]["curves"]["reward"])) for run in runs] == [3, 9]
    ids, links = re.findall(r' id="([^"]+)"', page), re.findall(r'<a href="#([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert len(links) == len(set(links))
    assert {*links} <= {*ids}
    assert "step 9: " in page


def test_equal_headings_have_their_own_anchors(tmp_path):
    page = render_page("t", "## Run a b\n\n## Run a=b\n\n## Run a b\n", tmp_path)
    ids = re.findall(r'<h2 id="([^"]+)"', page)
    assert len({*ids}) == 3
    assert re.findall(r'<a href="#([^"]+)"', page) == ["top", *ids]


def test_names_of_figures_files_are_safe_and_differ():
    names = ["run", "a b", "a=b", "a/b", "ä", "x" * 300, "y" + "x" * 300, "../up", ""]
    made = [file_name(name) for name in names]
    assert made[0] == "run"
    assert len({*made}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{,120}", name) for name in made)


def test_legends_have_names_that_begin_with_an_underscore_and_no_formulas(tmp_path):
    cell = {"value": 0.5, "low": 0.25, "high": 0.75}
    draw_scores({"AIME24": {"_a": cell}}, tmp_path / "one.png")
    draw_scores({"AIME24": {"b": cell, "_a": cell, r"$\c$": cell}}, tmp_path / "scores.png")
    assert re.search("> ?_a</text>", (tmp_path / "one.svg").read_text())
    drawn = (tmp_path / "scores.svg").read_text()
    assert re.search("> ?_a</text>", drawn)
    assert r">$\c$</text>" in drawn


HOSTILE = [
    "a*b*c",
    "_a_",
    "__a__b_",
    "`a`",
    "[a](b)",
    "![a](b)",
    "[a][a]",
    "<b>",
    "&amp;",
    r"a\*b\\",
    "a|b",
    "step_3",
    "<ftp://a>",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_in_markdown(name):
    markdown = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table")
    text = html.escape(name, quote=False)
    assert markdown.render(f"So **{escaped(name)}** it") == f"<p>So <strong>{text}</strong> it</p>\n"
    assert f"<th>{text}</th>" in markdown.render(f"| {escaped(name)} |\n| --- |\n")
    assert escaped("step_3 minus base: 50.0 [25.0, 75.0]") == "step_3 minus base: 50.0 [25.0, 75.0]"


def test_models_names_are_text_in_the_report(tmp_path, no_pictures):
    names = ("_a_ [b](c)", "*d* `e`")
    folders = [evaluation(tmp_path / name, f"some/{name}", {"AIME24": [0, 1, 1]}) for name in names]
    page = (report.write(folders, tmp_path / "out") / "report.html").read_text()
    body = page.split("<main")[1]
    assert not re.search('<em>|<code>e|<a href="c"', body)
    for name in names:
        assert f'<th class="number">{name}</th>' in body
    assert f">{names[1]} against {names[0]}, over the same problems</h2>" in body
    assert f"<strong>{names[1]} cannot be told apart from {names[0]} on AIME24: " in body
