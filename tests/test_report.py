"""The report page: one file, opened in a real browser where there is one."""

import json
import re
import shutil
import sys
from dataclasses import replace

import pytest
from forked import forked
from synthetic_runs import write_run, write_runs

from analysis.fronts import fvu_at, hypervolume
from analysis.report import main, page
from analysis.report_data import collect
from analysis.runs import best, read_runs, score
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
    runs = write_runs(
        folder, schedules=("constant", "linear", "cosine"), alphas=(0.3, 0.5), epochs=6
    )
    top = best(read_runs(folder))
    path = next(path for path in runs if path.name == top.name)
    shutil.rmtree(path)
    config = top.config
    write_run(
        path, top.schedule, config["alpha_max"], config["seed"], epochs=config["epochs"], model=True
    )
    return folder


@pytest.fixture(scope="module")
def open_page(browser, tmp_path_factory):
    """Opens the page of a folder's runs; complains of errors in it and of requests outside."""
    complaints = []

    def open_page(folder):
        file = tmp_path_factory.mktemp("page") / "page.html"
        file.write_text(page(read_runs(folder), "a sweep"), encoding="utf-8")
        view = browser.new_page(viewport={"width": 1400, "height": 900})
        view.on("console", lambda message: complaints.append(message.text))
        view.on("pageerror", lambda error: complaints.append(str(error)))
        view.on("request", lambda r: complaints.append(r.url) if r.url != file.as_uri() else None)
        view.goto(file.as_uri())
        view.wait_for_selector("#fvu-sparsity .plot > *")
        return view

    open_page.complaints = complaints
    return open_page


@pytest.fixture
def opened(open_page):
    """Opens a page that may have no errors and ask nothing of anybody."""
    yield open_page
    assert [text for text in open_page.complaints if not text.startswith(("data:", "blob:"))] == []


@pytest.fixture(scope="module")
def page_of_sweep(open_page, sweep):
    return open_page(sweep)


@pytest.fixture
def view(opened, page_of_sweep):
    """The page of `sweep` as it is when opened; loading it again would take a second."""
    page_of_sweep.evaluate("""() => {
        FILTERS.forEach(({ hidden }) => hidden.clear());
        Object.assign(state, { means: true, picked: null });
        order.by = COLUMNS.findIndex(({ name }) => name === "score");
        order.down = false;
        choose(data.best);
        scrollTo(0, 0);
    }""")
    return page_of_sweep


def show(view, panel: str) -> None:
    """Scroll a panel into view and wait until it is drawn."""
    view.locator(f"#{panel}").scroll_into_view_if_needed()
    view.wait_for_function("id => !panels.get(id).stale", arg=panel)


def traces(view, panel: str) -> list[dict]:
    return view.evaluate(f"document.querySelector('#{panel} .js-plotly-plot').data")


def names(view) -> list[str]:
    return [
        text.strip(" ★") for text in view.locator("#table tbody td:first-child").all_inner_texts()
    ]


def data_of(html: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])


# ---- in the browser


def test_every_panel_is_drawn_when_it_is_scrolled_to_and_not_before(sweep, opened):
    view = opened(sweep)
    panels = view.locator("figure").evaluate_all("all => all.map(one => one.id)")
    assert view.locator("figure .plot > *").count() < len(panels) / 2
    for panel in panels:
        show(view, panel)
    assert view.locator(".note").count() == 1, "the guard, of which these runs have no numbers"
    assert view.locator("figure .js-plotly-plot").count() == len(panels) - 2


def test_filters_take_runs_out_of_every_panel_and_of_the_table(view):
    n_runs, cosine = 18, "#009E73"
    assert len(names(view)) == n_runs
    show(view, "losses")
    colours = {trace["line"].get("color") for trace in traces(view, "losses")} - {None}
    assert cosine in colours
    view.get_by_role("button", name="cosine").click()
    assert len(names(view)) == n_runs - 6
    for panel in ("losses", "alpha-epochs", "self-similarity", "r-channels"):
        show(view, panel)
        assert cosine not in {trace["line"].get("color") for trace in traces(view, panel)}, panel
    show(view, "sparsity-persistence")
    points = traces(view, "sparsity-persistence")
    assert sum(len(trace["x"]) for trace in points) == n_runs - 6
    view.get_by_role("group", name="seed").get_by_role("button", name="2").click()
    assert len(names(view)) == 8
    assert sum(len(trace["x"]) for trace in traces(view, "sparsity-persistence")) == 8
    view.get_by_role("button", name="linear").dblclick()
    assert len(names(view)) == 4
    assert view.get_by_role("button", name="constant").get_attribute("aria-pressed") == "false"


def test_all_filtered_out_says_so(view):
    for name in ("constant", "linear", "cosine"):
        view.get_by_role("button", name=name).click()
    assert "the filters leave none" in view.locator("#table").inner_text()
    assert "the filters leave none" in view.locator("#fvu-sparsity").inner_text()


def test_lines_are_means_with_bands_or_every_run(view, sweep):
    show(view, "fvu")
    drawn = traces(view, "fvu")
    bands = [trace for trace in drawn if trace.get("fill") == "toself"]
    means = [trace for trace in drawn if "fill" not in trace]
    # A constant alpha knows no alpha_max: its runs are one setting, those of the others two each.
    assert (len(bands), len(means)) == (5, 5)
    members = [run for run in read_runs(sweep) if run.schedule == "constant"]
    fvu = [run.column("val/fvu") for run in members]
    assert means[0]["y"] == pytest.approx(list(sum(fvu) / len(fvu)), rel=1e-4)
    assert max(bands[0]["y"][:6]) == pytest.approx(max(map(max, fvu)), rel=1e-4)
    view.get_by_role("button", name="every run").click()
    assert len(traces(view, "fvu")) == 18


def test_the_table_sorts_by_each_column_both_ways_with_the_best_first_at_the_start(view, sweep):
    runs = read_runs(sweep)
    by_score = [run.name for run in sorted(runs, key=score)]
    assert names(view) == by_score
    view.get_by_role("button", name="score").click()
    assert names(view) == by_score[::-1]
    view.get_by_role("button", name="run", exact=True).click()
    assert names(view) == sorted(by_score)
    head = view.locator("#table th").first
    assert head.get_attribute("aria-sort") == "ascending"


def test_a_row_that_is_clicked_is_edged_in_the_panels_and_shown_below(view, sweep):
    show(view, "fvu")
    before = len(traces(view, "fvu"))
    row = view.locator("#table tbody tr").nth(4)
    name = row.locator("td").first.inner_text()
    row.click()
    after = traces(view, "fvu")
    assert len(after) == before + 2
    assert after[-1]["meta"].startswith(f"<b>{name}</b>")
    assert view.get_by_label("run", exact=True).locator("option:checked").inner_text()[:4] == name
    show(view, "run-losses")
    (run,) = read_runs(sweep / "runs" / name)
    assert traces(view, "run-losses")[1]["y"] == pytest.approx(run.column("val/loss"), rel=1e-4)
    show(view, "kernels")
    assert "not in this page" in view.locator("#kernels").inner_text()


def test_the_fronts_on_the_page_are_those_of_the_analysis(view, sweep):
    show(view, "fronts")
    rows = view.locator("#fronts tbody tr").all()
    found = {cells[0]: cells[1:] for cells in (row.locator("td").all_inner_texts() for row in rows)}
    assert set(found) == {"constant", "linear", "cosine", "all that are shown"}
    for schedule, cells in found.items():
        runs = [run for run in read_runs(sweep) if schedule in (run.schedule, "all that are shown")]
        costs = [(run.metrics["test/fvu"], 1 - run.metrics["test/sparsity"]) for run in runs]
        expected = [hypervolume(costs), *(fvu_at(costs, s) for s in (0.8, 0.9, 0.95))]
        shown = [float(cell.replace("–", "nan")) for cell in cells[1:]]
        assert shown == pytest.approx(expected, rel=1e-3, nan_ok=True)
        assert cells[0] == str(len(runs))


def test_the_fronts_of_the_page_have_the_hand_values(view):
    for points, area in (
        ([], 0),
        ([(0.2, 0.3)], 0.56),
        ([(0.2, 0.3), (0.5, 0.1)], 0.66),
        ([(0.6, 0.4), (0.5, 0.1), (0.2, 0.3)], 0.66),
        ([(1.2, 0.1)], 0),
    ):
        assert view.evaluate("points => hypervolume(points)", points) == pytest.approx(area)
    at = "sparsity => fvuAt([[.6, .4], [.5, .1], [.2, .3]], sparsity)"
    assert [view.evaluate(at, s) for s in (0.7, 0.8, 0.9)] == pytest.approx([0.2, 0.35, 0.5])
    assert [view.evaluate(at, s) for s in (0.69, 0.91)] == [None, None]


def test_what_files_say_is_text_and_never_code(tmp_path, opened):
    write_run(tmp_path / "plain", "linear", epochs=2)
    folder = write_run(tmp_path / EVIL, epochs=2)
    config = json.loads((folder / "config.json").read_text())
    config["sparse_loss"] = config["schedule"] = "</script><script>window.hacked=1</script>"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.json").write_text(json.dumps({"status": EVIL}))
    view = opened(tmp_path)
    for panel in view.locator("figure").evaluate_all("all => all.map(one => one.id)"):
        show(view, panel)
    show(view, "losses")
    view.locator("#losses .plot").hover()
    assert EVIL in names(view)
    assert view.evaluate("window.hacked") is None
    assert view.locator("img").count() == 0


def test_whatever_is_missing_is_said_in_its_place(tmp_path, opened):
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
    for panel, said in {
        "self-similarity": "No run that is shown has a self-similarity curve",
        "gain": "has a gain curve",
        "lowpass": "has a lowpass curve",
        "sparsity-persistence": "has measured its shift tolerance",
        "reconstruction": "This run has no reconstructions",
        "raster": "This run has no model, and so no encodings",
        "kernels": "This run has no model that can be loaded",
        "primitives": "This run has no model that can be loaded",
    }.items():
        show(view, panel)
        assert said in view.inner_text(f"#{panel}"), panel
    view.get_by_label("run", exact=True).select_option("1")
    show(view, "run-losses")
    assert "has not finished an epoch" in view.inner_text("#run-losses")


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
    for panel in view.locator("figure").evaluate_all("all => all.map(one => one.id)"):
        show(view, panel)
    assert view.locator("figure .note").count() == view.locator("figure").count()


# ---- without one


def test_numbers_of_two_hundred_runs_stay_small(tmp_path):
    write_runs(tmp_path, alphas=(0.3, 0.5), seeds=(0,), epochs=100)
    runs = read_runs(tmp_path)
    many = [replace(run, name=f"{run.name}-{i}") for i in range(20) for run in runs]
    html = page(many, "large")
    assert len(data_of(html)["runs"]) == 200
    assert len(html.encode()) < 15e6


def test_colours_stand_for_schedules_and_are_the_same_in_every_report(sweep, tmp_path):
    found = collect(read_runs(sweep))["series"]
    assert found["knob"] == "schedule"
    assert found["names"] == ["constant", "linear", "cosine"]
    write_run(tmp_path / "a", "cosine", epochs=2)
    assert collect(read_runs(tmp_path))["series"]["colours"] == [found["colours"][2]]


def test_colours_stand_for_another_setting_when_there_is_one_schedule(tmp_path):
    write_runs(tmp_path, schedules=("cosine",), alphas=(0.5, 0.3), seeds=(0, 1), epochs=2)
    found = collect(read_runs(tmp_path))
    assert found["series"]["knob"] == "alpha_max"
    assert found["series"]["names"] == ["0.3", "0.5"]
    assert [run["series"] for run in found["runs"]] == [1, 1, 0, 0]


def test_the_best_run_and_the_best_of_other_colours_are_shown_in_full(sweep):
    runs = read_runs(sweep)
    found = collect(runs)
    top = runs[found["best"]]
    assert top.name == best(runs).name
    assert len(found["details"]) == 3
    detail = found["details"][found["best"]]
    (utterance,) = detail["utterances"]
    assert utterance["channels"] == (*ARTICULATORS, "pitch")
    (kept,) = top.reconstructions()[6]
    y = top.model()(top.model().mean.new_tensor(kept.truth.T[None])).y[0].detach()
    assert utterance["prediction"][3] == pytest.approx(y[3].tolist(), rel=1e-2)
    assert len(detail["primitives"]) == len(detail["units"]) <= 16


def test_the_program_says_where_the_page_is_and_what_loads_the_best_model(sweep, capsys):
    assert main([str(sweep)]) == 0
    path = sweep / "report.html"
    assert capsys.readouterr().out == f"report: {path}\n"
    top = best(read_runs(sweep))
    assert f"emaae.load_model(&#x27;{top.ref}&#x27;)" in path.read_text()


def test_a_sweep_is_called_by_its_question(tmp_path, capsys):
    write_run(tmp_path / "runs" / "0001", epochs=2)
    (tmp_path / "sweep.yaml").write_text("# What does <alpha> cost?\nprogram: train.py\n")
    main([str(tmp_path), "--out", str(tmp_path / "new" / "page.html")])
    assert "<h1>What does &lt;alpha&gt; cost?</h1>" in (tmp_path / "new" / "page.html").read_text()


def test_a_mistake_is_one_line_and_status_2(tmp_path):
    done = forked("-m", "analysis.report", str(tmp_path))
    assert done.returncode == 2
    assert "holds no run" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_without_plotly_the_way_to_get_it_is_said(sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(UserError, match="pip install -r requirements.txt"):
        page(read_runs(sweep), "a sweep")
