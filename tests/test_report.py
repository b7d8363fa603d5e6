"""The report page: one file, opened in a real browser where there is one."""

import base64
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forked import forked
from synthetic_runs import write_model, write_run, write_runs

from analysis.colours import SCHEDULE_COLOURS
from analysis.fronts import fvu_at, hypervolume
from analysis.report import columns, filters, main, page
from analysis.report_figures import OF_MODEL, OF_RUNS, collect
from analysis.runs import best, read_runs
from emaae.data.features import ARTICULATORS
from emaae.system.errors import UserError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "<img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="module")
def browser():
    """A headless chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: install the package chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three schedules, two alphas, three seeds; the best run has a model."""
    folder = tmp_path_factory.mktemp("report") / "sweep"
    write_runs(folder, schedules=("constant", "linear", "cosine"), alphas=(0.3, 0.5), epochs=6)
    write_model(Path(best(read_runs(folder)).ref))
    return folder


@pytest.fixture(scope="module")
def open_page(browser, tmp_path_factory):
    """Open the page of a folder's runs; errors and requests to other hosts are failures."""
    complaints, files = [], {}

    def open_page(folder, **look):
        if folder not in files:
            files[folder] = tmp_path_factory.mktemp("page") / "page.html"
            files[folder].write_text(page(read_runs(folder), "a sweep"), encoding="utf-8")
        file = files[folder]
        view = browser.new_page(**{"viewport": {"width": 1400, "height": 900}} | look)
        view.on("console", lambda message: complaints.append(message.text))
        view.on("pageerror", lambda error: complaints.append(str(error)))
        view.on("request", lambda r: complaints.append(r.url) if r.url != file.as_uri() else None)
        view.goto(file.as_uri())
        show(view, "fvu-sparsity")
        return view

    open_page.complaints = complaints
    return open_page


@pytest.fixture
def opened(open_page):
    """Open a page that must have no errors and send no requests."""
    yield open_page
    assert [text for text in open_page.complaints if not text.startswith(("data:", "blob:"))] == []


@pytest.fixture(scope="module")
def page_of_sweep(open_page, sweep):
    return open_page(sweep)


@pytest.fixture(scope="module")
def dark_page(open_page, sweep):
    """The page of `sweep` where the user prefers dark, with all figures drawn."""
    view = open_page(sweep, color_scheme="dark")
    for figure in figures(view):
        show(view, figure)
    return view


@pytest.fixture
def view(opened, page_of_sweep):
    """The page of `sweep`, reset to how it was opened: loading it again would take a second."""
    page_of_sweep.evaluate("""() => {
        hidden.forEach((values) => values.clear());
        Object.assign(state, { means: true, picked: null });
        choose(page.best);
        scrollTo(0, 0);
    }""")
    return page_of_sweep


def show(view, figure: str) -> None:
    """Scroll a figure into view and wait until it is drawn."""
    view.locator(f"#{figure}").scroll_into_view_if_needed()
    view.wait_for_function("id => document.getElementById(id).dataset.drawn", arg=figure)


def traces(view, figure: str) -> list[dict]:
    """What the figure shows now; each has x and y as lists."""
    show(view, figure)
    return view.evaluate(f"""[...document.querySelector('#{figure} .plot')._fullData]
        .filter(({{ visible }}) => visible)
        .map(({{ x, y, ...rest }}) => ({{ ...rest, x: [...x ?? []], y: [...y ?? []] }}))""")


def colours(view, figure: str) -> set[str]:
    return {(trace.get("line") or trace["marker"])["color"] for trace in traces(view, figure)}


def figures(view) -> list[str]:
    return view.locator("figure[data-figure]").evaluate_all("all => all.map(one => one.id)")


def names(view) -> list[str]:
    return [
        text.strip(" ★")
        for text in view.locator("#table tr:not([hidden]) td:first-child").all_inner_texts()
    ]


def data_of(html: str) -> dict:
    return json.loads(re.search(r'id="page">(.*?)</script>', html, re.DOTALL)[1])


# ---- in the browser


def test_every_figure_is_drawn_when_it_is_scrolled_to_and_not_before(sweep, opened):
    view = opened(sweep)
    assert view.locator("figure .js-plotly-plot").count() < len(figures(view)) / 2
    for figure in figures(view):
        show(view, figure)
    lacking = view.locator("figure:has(.note)").evaluate_all("all => all.map(one => one.id)")
    # Of these runs nothing has counted directions, and no unit of an untrained model fires.
    assert set(lacking) <= {"guard", *OF_MODEL} - {"kernels"}
    drawn = view.locator("figure .js-plotly-plot").count()
    assert drawn == len(figures(view)) - len(lacking)


def test_filters_take_runs_out_of_every_figure_and_of_the_table(view):
    n_runs, cosine = 18, SCHEDULE_COLOURS["cosine"]
    assert len(names(view)) == n_runs
    assert cosine in colours(view, "val-loss")
    view.get_by_role("button", name="cosine", exact=True).click()
    assert len(names(view)) == n_runs - 6
    for figure in ("val-loss", "alpha-epochs", "self-similarity", "r-channels"):
        assert cosine not in colours(view, figure), figure
    assert len(traces(view, "sparsity-persistence")) == n_runs - 6
    view.get_by_role("group", name="seed").get_by_role("button", name="2").click()
    assert len(names(view)) == len(traces(view, "sparsity-persistence")) == 8
    # Means are of all seeds: without one of them every run is drawn.
    assert {trace["meta"]["kind"] for trace in traces(view, "fvu")} == {"each"}
    view.get_by_role("button", name="linear", exact=True).dblclick()
    assert len(names(view)) == 4
    pressed = view.get_by_role("button", name="constant", exact=True).get_attribute("aria-pressed")
    assert pressed == "false"


def test_the_page_says_when_all_runs_are_filtered_out(view):
    for name in ("constant", "linear", "cosine"):
        view.get_by_role("button", name=name, exact=True).click()
    assert "the filters leave none" in view.locator("#table").inner_text()


def test_lines_are_means_with_bands_or_every_run(view, sweep):
    drawn = traces(view, "fvu")
    bands = [trace for trace in drawn if trace.get("fill") == "toself"]
    means = [trace for trace in drawn if trace.get("fill") != "toself"]
    # A constant alpha knows no alpha_max: its runs are one setting, those of the others two each.
    assert (len(bands), len(means)) == (5, 5)
    members = [run for run in read_runs(sweep) if run.schedule == "constant"]
    fvu = [run.column("val/fvu") for run in members]
    assert means[0]["y"] == pytest.approx(list(sum(fvu) / len(fvu)), rel=1e-4)
    assert max(bands[0]["y"][:6]) == pytest.approx(max(map(max, fvu)), rel=1e-4)
    view.get_by_role("button", name="every run").click()
    every = traces(view, "fvu")
    assert len(every) == 18
    # Settings stay in the legend, each once.
    assert len([trace for trace in every if trace["showlegend"]]) == 5
    assert len({trace["name"] for trace in every if trace["showlegend"]}) == 5


def test_the_table_sorts_by_each_column_both_ways_with_the_best_first_at_the_start(sweep, opened):
    view = opened(sweep)
    runs = read_runs(sweep)
    by_score = [run.name for run in sorted(runs, key=lambda run: run.score)]
    assert names(view) == by_score
    view.get_by_role("button", name="score").click()
    assert names(view) == by_score[::-1]
    view.locator("#table th button").first.click()
    assert names(view) == sorted(by_score)
    assert view.locator("#table th").first.get_attribute("aria-sort") == "ascending"


def test_a_row_that_is_clicked_is_bold_in_the_figures_and_shown_below(view, sweep):
    before = len(traces(view, "fvu"))
    row = view.locator("#table tbody tr").nth(4)
    name = row.locator("td").first.inner_text()
    row.click()
    (run,) = read_runs(sweep / "runs" / name)
    after = traces(view, "fvu")
    assert len(after) == before + 1
    (bold,) = [trace for trace in after if trace["line"]["width"] == 5]
    assert bold["text"] == name
    assert bold["y"] == pytest.approx(run.column("val/fvu"), rel=1e-4)
    assert view.locator("#choose-run").locator("option:checked").inner_text()[:4] == name
    assert traces(view, "run-losses")[1]["y"] == pytest.approx(run.column("val/loss"), rel=1e-4)
    show(view, "kernels")
    assert "is not shown in full" in view.locator("#kernels").inner_text()


def test_the_fronts_on_the_page_are_those_of_the_analysis(view, sweep):
    rows = view.locator("#fronts tbody tr").all()
    found = {cells[0]: cells[1:] for cells in (row.locator("td").all_inner_texts() for row in rows)}
    assert set(found) == {"constant", "linear", "cosine", "all runs"}
    for schedule, cells in found.items():
        runs = [run for run in read_runs(sweep) if schedule in (run.schedule, "all runs")]
        costs = [(run.metrics["test/fvu"], 1 - run.metrics["test/sparsity"]) for run in runs]
        expected = [hypervolume(costs), *(fvu_at(costs, s) for s in (0.8, 0.9, 0.95))]
        shown = [float(cell.replace("–", "nan")) for cell in cells[1:]]
        assert shown == pytest.approx(expected, rel=1e-3, nan_ok=True)
        assert cells[0] == str(len(runs))


def test_on_paper_every_figure_is_drawn_on_white_and_fits(sweep, opened):
    view = opened(sweep, color_scheme="dark")
    view.evaluate("dispatchEvent(new Event('beforeprint'))")
    places = view.locator("figure[data-figure] .plot")
    assert places.evaluate_all("all => all.every(one => one.childElementCount)")
    ink = "one => [one.getBoundingClientRect().right, getComputedStyle(one).color]"
    assert {color for _, color in places.evaluate_all(f"all => all.map({ink})")} == {
        "rgb(34, 40, 47)"
    }
    assert max(right for right, _ in places.evaluate_all(f"all => all.map({ink})")) <= 720
    right = "document.querySelector('#table table').getBoundingClientRect().right"
    assert view.evaluate(right) <= 720
    row = "document.querySelector('#table tbody tr').getBoundingClientRect().height"
    assert view.evaluate(row) < 20  # numbers are in one piece
    assert view.locator("nav").is_hidden()
    view.evaluate("dispatchEvent(new Event('afterprint'))")
    assert view.locator("nav").is_visible()


@pytest.mark.slow
def test_the_pdf_of_the_page_has_its_figures_as_drawings(sweep, opened, tmp_path):
    view = opened(sweep)
    count = "all => all.filter(one => one.childElementCount).length"
    places = view.locator("figure[data-figure] .plot")
    assert places.evaluate_all(count) < places.count()
    plots = "[...document.querySelectorAll('figure[data-figure] .plot')]"
    count_them = f"window.inPrint = {plots}.filter((one) => one.childElementCount).length"
    view.evaluate(f"addEventListener('beforeprint', () => {{ {count_them}; }})")
    view.pdf(path=tmp_path / "page.pdf", format="A4")
    content = (tmp_path / "page.pdf").read_bytes()
    assert 8 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 30
    assert not view.evaluate("printing"), "the screen is as it was"
    assert view.evaluate("inPrint") == places.count()


def test_in_the_dark_the_text_of_page_and_figures_is_light(dark_page, opened):
    view = dark_page
    assert view.evaluate("getComputedStyle(document.body).color") == "rgb(228, 231, 234)"
    fill = "getComputedStyle(document.querySelector('#fvu .xtick text')).fill"
    assert view.evaluate(fill) == "rgb(228, 231, 234)"


def test_on_a_telephone_the_page_scrolls_vertically_only(sweep, opened):
    view = opened(sweep, viewport={"width": 420, "height": 800})
    for figure in figures(view):
        show(view, figure)
    assert view.evaluate("document.documentElement.scrollWidth") <= 420


def test_the_keyboard_reaches_filters_headings_rows_and_figures(view):
    view.locator("a, button, [tabindex='0']").first.focus()
    for _ in range(30):  # the answer, headings of the page, then the filters
        view.keyboard.press("Tab")
        if view.evaluate("document.activeElement.matches('button[data-value]')"):
            break
    assert view.evaluate("document.activeElement.matches('button[data-value]')")
    view.keyboard.press("Space")
    assert len(names(view)) == 12
    view.keyboard.press("Space")
    view.locator("#table tbody td button").nth(3).focus()
    view.keyboard.press("Enter")
    assert view.locator("#table tr.chosen").count() == 1
    reached = "all => all.every(one => one.tabIndex === 0 && one.getAttribute('aria-label'))"
    assert view.locator("figure .plot").evaluate_all(reached)


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_the_accessibility_checker_axe_finds_nothing_serious(view, dark_page, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    if scheme == "dark":
        view = dark_page
    else:
        for figure in figures(view):
            show(view, figure)
    found = axe.run(view).response["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert not serious, [(v["id"], [n["html"][:150] for n in v["nodes"]][:3]) for v in serious]


def test_figures_say_in_words_what_they_show(view):
    show(view, "fvu")
    said = view.locator("#fvu .plot").get_attribute("aria-label")
    assert said.startswith("val fvu against epoch; constant: ")
    assert "cosine, alpha_max 0.3: " in said


def test_an_axis_that_begins_at_0_does_so_on_the_page(tmp_path, opened):
    history = write_run(tmp_path / "a", epochs=4) / "history.jsonl"
    rows = [json.loads(line) for line in history.read_text().splitlines()]
    rows = [row | {"alpha": 0.5 + row["epoch"] / 100} for row in rows]
    history.write_text("".join(json.dumps(row) + "\n" for row in rows))
    view = opened(tmp_path)
    show(view, "alpha-epochs")
    plot = "document.querySelector('#alpha-epochs .plot')"
    low, high = view.evaluate(f"{plot}._fullLayout.yaxis.range")
    assert low == 0
    assert 0.5 < high < 0.6


def test_the_page_offers_no_upload(view):
    show(view, "fvu")
    buttons = view.locator("#fvu .modebar-btn").evaluate_all("all => all.map(b => b.dataset.title)")
    assert len(buttons) == 4
    assert not [title for title in buttons if re.search("cloud|edit|upload", title or "", re.I)]


def test_text_from_files_is_never_run_as_code(tmp_path, opened):
    write_run(tmp_path / "plain", "linear", epochs=2)
    folder = write_run(tmp_path / EVIL, epochs=2)
    config = json.loads((folder / "config.json").read_text())
    config["sparse_loss"] = config["schedule"] = "</script><script>window.hacked=1</script>"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.json").write_text(json.dumps({"status": EVIL}))
    view = opened(tmp_path)
    for figure in figures(view):
        show(view, figure)
    show(view, "val-loss")
    view.locator("#val-loss .plot").hover()
    assert EVIL in names(view)
    assert view.evaluate("window.hacked") is None
    assert view.locator("img").count() == 0


def test_missing_parts_are_named_in_their_place(tmp_path, opened):
    for name in ("a", "b", "c"):
        write_run(tmp_path / name, epochs=2, curves=False, test=False)
    shutil.rmtree(tmp_path / "a" / "reconstructions")
    for name in ("b", "c"):
        for file in ("history.jsonl", "metrics.json"):
            (tmp_path / name / file).unlink()
    (tmp_path / "c" / "config.json").unlink()
    (tmp_path / "c" / "metrics.json").write_text('{"status": "failed"}')
    view = opened(tmp_path)
    assert "validation split (not every run has a test split)" in view.inner_text("#summary")
    assert "3: 1 finished, 1 unfinished, 1 failed" in view.inner_text("#summary")
    for figure, said in {
        "self-similarity": "No run has the curve self_similarity",
        "gain": "No run has the curve gain",
        "lowpass": "No run has the curve lowpass",
        "sparsity-persistence": "No run has both shift/persistence and val/sparsity",
        "reconstruction": "This run has kept no reconstructions",
        "encoding": "This run has no model that can be loaded",
        "kernels": "This run has no model that can be loaded",
        "primitives": "This run has no model that can be loaded",
        "unit": "This run has no model that can be loaded",
    }.items():
        show(view, figure)
        assert said in view.inner_text(f"#{figure}"), figure
    view.locator("#choose-run").select_option("1")
    show(view, "run-losses")
    assert "Run b has finished no epoch" in view.inner_text("#run-losses")


def test_one_run_that_failed_at_once_still_has_a_page(tmp_path, opened):
    folder = tmp_path / "runs" / "0001"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text('{"status": "failed"}')
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "0001.txt").write_text("train.py: error: no such tree\n")
    view = opened(tmp_path)
    summary = view.inner_text("#summary")
    assert "failed before the end of its first epoch: train.py: error: no such tree" in summary
    assert "No run has ended well yet" in summary
    for figure in figures(view):
        show(view, figure)
    assert view.locator("figure .note").count() == view.locator("figure").count()


# ---- without one


@pytest.mark.slow
def test_numbers_of_two_hundred_runs_stay_small(tmp_path):
    write_runs(tmp_path, alphas=(0.3, 0.5), seeds=(0,), epochs=100)
    runs = read_runs(tmp_path)
    many = [replace(run, name=f"{run.name}-{i}") for i in range(20) for run in runs]
    html = page(many, "large")
    assert len(data_of(html)["runs"]) == 200
    assert len(html.encode()) < 15e6


def test_filters_are_the_knobs_that_vary_with_their_values_in_order(sweep):
    runs = read_runs(sweep)
    found = filters(runs)
    assert {one["name"]: one["values"] for one in found} == {
        "schedule": ["constant", "cosine", "linear"],
        "alpha_max": ["0.3", "0.5"],
        "seed": ["0", "1", "2"],
    }
    for one in found:
        values = [run.knob(one["name"]) for run in runs]
        assert [one["values"][i] for i in one["of"]] == list(map(str, values))


def test_the_best_run_and_the_best_of_other_settings_are_shown_in_full(sweep):
    runs = read_runs(sweep)
    made, details = collect(runs)
    top = best(runs)
    assert len(details) == 4
    assert list(details)[0] == runs.index(top)
    (kept,) = top.reconstructions()
    assert details[runs.index(top)]["utterances"] == [kept.name]
    figure = made[f"reconstruction/{runs.index(top)}/0"]
    assert "pitch Hz" in figure["text"]
    y = top.model()(top.model().mean.new_tensor(kept.truth.T[None])).y[0].detach()
    drawn = figure["figure"]["data"]
    assert len(drawn) == 2 * len((*ARTICULATORS, "pitch"))
    values = np.frombuffer(base64.b64decode(drawn[6]["y"]["bdata"]), drawn[6]["y"]["dtype"])
    assert values == pytest.approx(y[3].numpy(), rel=1e-2, abs=1e-4)


def test_the_page_begins_with_the_best_run_and_how_far_it_meets_the_targets(tmp_path):
    folder = write_run(tmp_path / "a", epochs=4)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics |= {"test/live_sparsity": 0.85, "shift/persistence_within": 0.95, "test/fvu": 0.04}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    answer = page(read_runs(folder), "t").partition("Which run to take</h2>")[2][:1500]
    assert answer.startswith("<p><strong>a: cosine, epoch 4</strong>, with the lowest validation ")
    assert "<b>0.04</b>fvu" in answer
    assert "<b>0.85</b>zeros of live units<small>0.05 below 0.9</small>" in answer
    assert "<b>0.95</b>persistence within<small>target 0.9, met</small>" in answer


def test_every_figure_has_a_place_with_a_heading_and_a_caption_of_its_own(sweep):
    html = page(read_runs(sweep), "t")
    pattern = r'data-figure="(.*?)".*?<h3>(.*?)</h3>.*?<figcaption>(.*?)</figcaption>'
    places = re.findall(pattern, html, re.DOTALL)
    names, *others = zip(*places)
    of_one_run = {"run-losses", "run-alpha", "reconstruction", *OF_MODEL}
    assert sorted(names) == sorted({*OF_RUNS, *of_one_run})
    for texts in others:
        assert all(texts)
        assert len(set(texts)) == len(names)
    links = re.findall('<a href="#(.*?)">', html.partition("<main")[0])
    assert set(links) <= set(re.findall('id="(.*?)"', html))


def test_the_numbers_of_a_column_have_the_same_decimals(sweep):
    found = {column.name: column.cells for column in columns(read_runs(sweep))}
    for name in ("score", "fvu", "sparsity", "l0", "persistence"):
        assert len({len(text.partition(".")[2]) for text, _ in found[name]}) == 1, name
    assert {text for text, _ in found["epoch"]} <= set("123456")
    assert {text for text, _ in found["alpha_max"]} == {"0.3", "0.5"}


def test_the_program_says_where_the_page_is_and_what_loads_the_best_model(sweep, capsys):
    main([str(sweep)])
    path = sweep / "report.html"
    assert capsys.readouterr().out == f"report: {path}\n"
    top = best(read_runs(sweep))
    assert f"emaae.load_model(&#39;{top.ref}&#39;)" in path.read_text()


def test_the_title_of_a_sweep_is_its_question(tmp_path, capsys):
    write_run(tmp_path / "runs" / "0001", epochs=2)
    (tmp_path / "sweep.yaml").write_text("# What does <alpha> cost?\nprogram: train.py\n")
    main([str(tmp_path), "--out", str(tmp_path / "new" / "page.html")])
    assert "<h1>What does &lt;alpha&gt; cost?</h1>" in (tmp_path / "new" / "page.html").read_text()


def test_a_usage_error_prints_one_line_and_exits_with_status_2(tmp_path):
    done = forked("-m", "analysis.report", str(tmp_path))
    assert done.returncode == 2
    assert "holds no run" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    with pytest.raises(UserError, match="--out must name a .html file, got README.md"):
        main([str(tmp_path), "--out", "README.md"])
