"""The page about runs: one file that needs nothing else, which a browser shows at any width."""

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from helpers import SMALL, info

from mnist_exp.search.page import optuna_plots


def page_data(text: str) -> dict:
    """What a page is drawn from."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])


def test_the_page_needs_nothing_from_elsewhere(command, runs):
    assert command("compare", "--html", "page.html").status == 0
    text = re.sub(
        r'(<script type="text/plain" id="plotly">).*?</script>',
        r"\1</script>",
        Path("page.html").read_text(),
        flags=re.S,
    )
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", text.replace("data:image", ""))
    assert set(re.findall(r"https?://[\w./]+", text)) == set()
    data = page_data(text)
    assert len(data["runs"]) == 6
    assert data["scored"] == 4
    assert data["wall"][0]["said"]
    confusion = next(c for c in data["confusions"] if c)
    assert confusion["classes"] == list("0123456789")
    assert np.array(confusion["counts"]).sum() == 1000


def test_the_page_answers_what_was_asked(command, runs):
    def answer(*arguments: str) -> dict | None:
        done = command("compare", *arguments, "--html", "page.html", "--csv", "answer.csv")
        assert done.status == 0, done.err
        found = page_data(Path("page.html").read_text())["answer"]
        assert found is None or found["title"] in done.out
        return found

    assert answer() is None
    for question, words in (
        (["--baseline", "a1"], "McNemar"),
        (["--group-by", "optimizer.lr"], "by optimizer.lr"),
        (["--baseline", "a1", "--group-by"], "over seeds"),
    ):
        found = answer(*question)
        assert words in found["title"]
        written = pd.read_csv("answer.csv")
        assert len(found["rows"]) == len(written)
        assert set(found["columns"]) <= set(written.columns)
        assert {len(row) for row in found["rows"]} == {len(found["columns"])}
    assert found["rows"][0][found["columns"].index("verdict")] == written["verdict"][0]


def check_the_table(page) -> None:
    """It is sorted, filtered, and shows the columns of one's choice, also after a reload."""
    rows = page.locator("#table tbody tr")
    assert rows.count() == 6
    if page.viewport_size["width"] < 600:
        assert page.locator("#table thead th").all_inner_texts()[:3] == ["name", "test_acc", "val_acc"]
    page.get_by_role("button", name="test_acc", exact=True).click()
    column = page.locator("#table thead th").all_inner_texts().index("test_acc \u25be") + 1
    shown = page.locator(f"#table tbody td:nth-child({column})").all_inner_texts()
    values = [float(v) for v in shown if v]
    assert values == sorted(values, reverse=True)
    for words, count in (("status=failed", 1), ("lr>=0.03", 3), ("finished lr<0.02", 3), ("nothing-of-the-kind", 0)):
        page.fill("#filter", words)
        assert rows.count() == count, words
    page.fill("#filter", "lr=0.03")
    page.locator("details.columns summary").click()
    page.get_by_label("model.num_classes", exact=True).or_(page.get_by_label("started", exact=True)).first.check()
    page.reload()
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    assert page.input_value("#filter") == "lr=0.03"
    assert rows.count() == 2
    assert "started" in page.locator("#table thead").inner_text()
    assert "test_acc \u25be" in page.locator("#table thead").inner_text()
    page.fill("#filter", "")


def check_the_charts(page, width: int) -> None:
    """They are drawn, named by what differs, with a mean and a band where there are seeds, and readable."""
    for name in ("curves", "scatter", "parallel"):
        page.locator(f"#{name}").scroll_into_view_if_needed()
        page.wait_for_selector(f"#{name} .main-svg", state="attached")
    legend = page.locator("#curves .legendtext").all_text_contents()
    means = [name for name in legend if "mean of 2, band: std" in name]
    assert len(means) == 2
    assert any("lr=0.03" in name for name in means)
    assert any("seed=2" in name for name in legend) == (width > 700), "for single runs a phone has no room"
    traces = page.locator("#curves .scatterlayer .trace")
    before = traces.count()
    page.evaluate("Plotly.restyle('curves', {visible: 'legendonly'}, [0])")
    assert traces.count() == before - 1
    page.check("#curve-log")
    assert page.evaluate("document.getElementById('curves').layout.yaxis.type") == "log"
    sizes = page.evaluate(
        "[...document.querySelectorAll('#curves .xtick text, #curves .ytick text')].map(t => parseFloat(getComputedStyle(t).fontSize))"
    )
    assert min(sizes) >= 12
    assert page.locator("#curves").bounding_box()["width"] <= width
    page.select_option("#parameter", "optimizer.lr")
    assert page.locator("#scatter .points path").count() == 5


def test_the_page_of_a_search_has_optunas_plots(command, place):
    words = ["--multirun", "hparams_search=quick", *SMALL, "hydra.sweeper.n_trials=2", "optimizer.lr=0.01,0.02"]
    words += ["hydra/sweeper/sampler=random", "model.ghost_batch_size=choice(8,16)", "pruner=none"]
    assert command(*words).status == 0
    done = command("compare", "outputs/sweeps/quick", "--html", "page.html")
    assert done.status == 0, done.err
    found = page_data(Path("page.html").read_text())
    titles = [one["title"] for one in found["search"]]
    drawn = {"History", "Slices", "Parallel coordinates", "Ranks", "Distribution of values (EDF)"}
    assert drawn <= {*titles}
    assert all(one["figure"]["data"] for one in found["search"])
    assert len(found["runs"]) == 2
    (place / "outputs/sweeps/quick/study.db").write_bytes(b"torn")
    done = command("compare", "outputs/sweeps/quick", "--html", "page.html")
    assert done.status == 0, done.err
    assert "no plots of the search" in done.out
    found = page_data(Path("page.html").read_text())
    assert (found["search"], len(found["runs"])) == ([], 2)


def test_a_choice_that_no_trial_drew_is_no_html_either():
    link = "<a href='https://evil.example'>b</a>"
    study = optuna.create_study()
    choices = optuna.distributions.CategoricalDistribution(["a", link])
    study.add_trial(optuna.trial.create_trial(params={"x": "a"}, distributions={"x": choices}, value=1.0))
    told: list[str] = []
    assert optuna_plots(study, told.append) == {}
    assert link in told[0]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_the_page_works_in_a_browser(command, runs, place, browser, width, scheme):
    about = info(runs / "b1")
    (runs / "b1" / "run.json").write_text(
        json.dumps(about | {"named": about["named"] | {"x.text": "<b>&</b></script>"}})
    )
    assert command("compare", "--baseline", "a1", "--html", "page.html").status == 0
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: problems.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
    )
    page.goto(f"file://{place / 'page.html'}")
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    assert "McNemar" in page.locator("#answer-title").inner_text()
    assert page.locator("#answer-table tbody tr").count() == 3
    assert page.locator("#answer-table").get_by_text("<b>&</b></script>", exact=True).count() == 1
    check_the_table(page)
    check_the_charts(page, width)
    names = [o.inner_text() for o in page.locator("#left option").all()]
    page.select_option("#left", label=next(n for n in names if n.split()[0].endswith("a1")))
    page.select_option("#right", label=next(n for n in names if n.split()[0].endswith("b1")))
    assert "optimizer.lr" in page.locator("#difference").inner_text()
    assert page.locator("#confusion td").count() == 100
    assert page.locator("#wall img").count() > 5
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(255, 255, 255)") == (scheme == "light")
    assert problems == []


def ask(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    """Return status and text of what the server on ``port`` answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={"Host": host})
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_the_page_is_served_and_follows_the_runs(runs, place):
    words = [sys.executable, "-u", "-m", "mnist_exp", "compare", "--serve"]
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    served = subprocess.Popen(words, cwd=place, stdout=subprocess.PIPE, text=True, **options)
    try:
        assert served.stdout is not None
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:(\d+)", line) for line in served.stdout)))
        port = int(found[1])
        _, first = ask(port, "/version")
        data = page_data(ask(port, "/")[1])
        assert (len(data["runs"]), data["live"]) == (6, first)
        shutil.rmtree(runs / "a1")
        assert ask(port, "/version")[1] != first
        assert len(page_data(ask(port, "/")[1])["runs"]) == 5
        shutil.move(runs, place / "away")
        runs.mkdir()
        status, told = ask(port, "/")
        assert (status, "there is no run below outputs" in told) == (503, True)
        runs.rmdir()
        shutil.move(place / "away", runs)
        assert ask(port, "/")[0] == 200
        assert ask(port, "/outputs")[0] == 404
        assert ask(port, "/", host="evil.example")[0] == 403
    finally:
        served.send_signal(signal.SIGINT)
    assert served.wait(60) == 130


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--serve", "70000"], ["--serve is 70000", "a port"]),
        (["--serve", "--html", "x.html"], ["--serve shows a page", "writes no file"]),
        (["--serve", "--watch"], ["--serve shows a page", "--watch is for a terminal"]),
        (["--serve", "--filter", "val_acc > 1000"], ["none of the 6 runs matches"]),
    ],
)
def test_what_cannot_be_served_is_told(command, runs, words, told):
    done = command("compare", *words)
    assert (done.status, done.out) == (2, "")
    assert all(word in done.err for word in told)
