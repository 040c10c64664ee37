"""Files and names from elsewhere: what a search keeps, what a run calls itself, where a report or a page is written."""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from helpers import SMALL
from omegaconf import OmegaConf
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from mnist_exp.config.ours import config_folder
from mnist_exp.runs.folder import RunFolder

SWEEP = Path("outputs/sweeps/mine")
RATE = FloatDistribution(0.001, 1.0, log=True)
ESCAPES = "\x1b[2J\x1b]0;title\x07\r\b\u202e\u2028\nforged  finished  99.99"


def write_run(path: Path, name: str = "x", config: dict | None = None, **info) -> None:
    """Write a finished run; ``info`` goes into its run.json."""
    with hydra.initialize_config_dir(config_folder()):
        composed = hydra.compose("train", ["data=sample"], return_hydra_config=True)
    plain = OmegaConf.to_container(composed)
    choices = plain.pop("hydra")["runtime"]["choices"]
    dataset = {"name": "sample", "train": 9, "val": 9, "test": 1000, "md5": "0" * 32, "split_seed": 0}
    about = {"status": "finished", "prefix": "x", "seed": 1, "overrides": ["data=sample"], "epoch": 1, "epochs": 1}
    about |= {"started": "2026-01-01T00:00:00", "seconds": 1.0, "dataset": dataset, "command": name}
    about |= {"metrics": {"val_acc": 90.0, "test_acc": 90.0, "images_per_s": 1.0}, "tags": [name], "task_name": name}
    settings = {"hydra": {"runtime": {"choices": choices}, "sweeper": {"study_name": "mine", "storage": None}}}
    files = {
        "config.yaml": yaml.safe_dump(plain | (config or {}), sort_keys=False),
        "hydra.yaml": yaml.safe_dump(settings),
    }
    RunFolder.create(path.absolute(), about, files).unlock()
    kept = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(kept | info))
    row = "{},strong,0.1,{},90,0.5,{},1,1\n"
    with (path / "history.csv").open("a") as file:
        file.writelines(row.format(epoch, 1 / epoch, 80 + epoch) for epoch in (1, 2))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A search of two finished trials, and the folder of the best."""
    folder = tmp_path_factory.mktemp("made") / "mine"
    folder.mkdir()
    study = optuna.create_study(study_name="mine", storage=f"sqlite:///{folder}/study.db", direction="maximize")
    study.set_user_attr("search", {"metric": "val_acc"})
    for number, value in enumerate((90.0, 80.0)):
        drawn = {"params": {"optimizer.lr": 0.01 + number / 10}, "distributions": {"optimizer.lr": RATE}}
        study.add_trial(create_trial(value=value, intermediate_values={1: 5.0}, **drawn))
    write_run(folder / "trial-0")
    return folder


@pytest.fixture
def sweep(made, place) -> Path:
    """The same, in a place of its own."""
    shutil.copytree(made, SWEEP)
    return SWEEP


def change(statement: str, *values) -> Callable[[], None]:
    """Change what is in study.db by an SQL statement."""

    def go() -> None:
        with contextlib.closing(sqlite3.connect(SWEEP / "study.db")) as database, database:
            database.execute(statement, values)

    return go


def settings(**sweeper) -> None:
    """Let the trial's settings say ``sweeper``, and let its study be elsewhere."""
    file = SWEEP / "trial-0" / ".hydra" / "hydra.yaml"
    text = yaml.safe_load(file.read_text())
    text["hydra"]["sweeper"] |= sweeper
    file.write_text(yaml.safe_dump(text))
    (SWEEP / "study.db").rename("elsewhere.db")
    (SWEEP / ".study").write_text("x")


def everything(*folders: str) -> dict[str, tuple]:
    """Return what is below ``folders``: kind, size and time of each."""
    found = {}
    for folder in folders:
        for path in [Path(folder), *Path(folder).rglob("*")]:
            about = path.lstat()
            found[str(path)] = (about.st_mode, about.st_size, about.st_mtime_ns)
    return found


@pytest.fixture
def listener() -> Iterator[tuple[int, list[bytes]]]:
    """A socket that must hear nothing: its port, and what it has heard."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    heard.append(b"called")
                    connection.settimeout(2)
                    with contextlib.suppress(OSError):
                        heard.append(connection.recv(1000))
                    connection.close()

        threading.Thread(target=listen, daemon=True).start()
        yield server.getsockname()[1], heard
        server.shutdown(socket.SHUT_RDWR)


# ---------------------------------------------------------------------------------------------- the study of a search


@pytest.mark.parametrize("beside", [True, False], ids=["study.db", "no study.db"])
def test_a_storage_that_a_trial_names_is_not_called(command, sweep, listener, monkeypatch, beside):
    port, heard = listener
    monkeypatch.setenv("A_SECRET", "swordfish")
    settings(storage=f"postgresql+psycopg://${{oc.env:USER,me}}:${{oc.env:A_SECRET}}@127.0.0.1:{port}/x")
    if beside:
        Path("elsewhere.db").rename(SWEEP / "study.db")
    done = command("compare", str(SWEEP))
    assert heard == []
    assert "swordfish" not in done.out + done.err
    assert done.status == (0 if beside else 2), done.err
    if not beside:
        assert f"compare {SWEEP} --storage URL" in done.err
        assert f"@127.0.0.1:{port}/x" in done.err, "it is shown, without the password"
        assert "A_SECRET" not in done.err


def test_a_storage_that_the_user_names_is_called(command, sweep, listener):
    port, heard = listener
    done = command("compare", str(SWEEP), "--storage", f"postgresql+psycopg://me:pass/word@127.0.0.1:{port}/x")
    assert done.status == 2
    assert heard[0] == b"called"
    assert "me@127.0.0.1" in done.err
    assert "word" not in done.err
    done = command("compare", str(SWEEP), "--storage", "sqlite:///outputs/sweeps/mine/study.db")
    assert done.status == 2
    assert "postgresql+psycopg://" in done.err


def hot_journal(further: str = "") -> None:
    """Leave a rollback journal as a writer does that was killed; ``further``: the file that it says was written too."""
    database = SWEEP / "study.db"
    head = database.read_bytes()[:100]
    magic, size = bytes.fromhex("d9d505f920a163d7"), struct.unpack(">H", head[16:18])[0]
    journal = (magic + struct.pack(">5I", 0, 0, database.stat().st_size // size, 512, size)).ljust(512, b"\0")
    if further:
        name = further.encode()
        journal += struct.pack(">I", 2**30 // size + 1) + name + struct.pack(">II", len(name), sum(name)) + magic
    (SWEEP / "study.db-journal").write_bytes(journal)


def test_a_journal_deletes_no_other_file(command, sweep):
    victim = Path.cwd() / "victim"
    victim.write_text("precious")
    hot_journal(str(victim))
    done = command("compare", str(SWEEP))
    assert victim.exists()
    assert done.status == 2
    assert "study.db-journal was not left by a search" in done.err
    searched = command(
        "--multirun", "hparams_search=quick", *SMALL, "hydra.sweeper.n_trials=1", f"hydra.sweep.dir={SWEEP}"
    )
    assert victim.exists()
    assert searched.status == 2


def test_the_study_of_a_killed_search_is_read_and_left_as_it_is(command, sweep):
    hot_journal()
    before = {name: content for name, content in everything(str(SWEEP)).items() if "study.db" in name}
    done = command("compare", str(SWEEP))
    assert done.status == 0, done.err
    assert "trial-0 *  complete" in done.out
    assert before == {name: content for name, content in everything(str(SWEEP)).items() if "study.db" in name}


def replaced(make: Callable[[Path], None]) -> Callable[[], None]:
    def go() -> None:
        (SWEEP / "study.db").unlink()
        make(SWEEP / "study.db")

    return go


def sparse(file: Path) -> None:
    file.write_bytes(Path("other.db").read_bytes() if Path("other.db").exists() else b"SQLite format 3\0\x10\0\1\1")
    os.truncate(file, 2**40)


def bomb() -> None:
    """Let inner pages of the table of trials name one another: a few kB that read as more rows than there is time for."""
    file = SWEEP / "study.db"
    with contextlib.closing(sqlite3.connect(file)) as database:
        (root,) = database.execute("select rootpage from sqlite_master where name = 'trials'").fetchone()
        (count,) = database.execute("pragma page_count").fetchone()
    content = bytearray(file.read_bytes())
    for level in range(15):  # each an inner page whose children are all the next
        page = root if level == 0 else count + level
        below = count + level + 1
        cells = 400
        start = 4096 - 5 * cells
        inner = struct.pack(">BHHHBI", 5, 0, cells, start, 0, below)
        inner += b"".join(struct.pack(">H", start + 5 * n) for n in range(cells))
        inner = inner.ljust(start, b"\0") + (struct.pack(">I", below) + b"\1") * cells
        content[(page - 1) * 4096 : page * 4096] = inner
    content[28:32] = struct.pack(">I", len(content) // 4096)
    file.write_bytes(content)


@pytest.mark.parametrize(
    "attack",
    [
        replaced(lambda file: os.mkfifo(file)),
        replaced(lambda file: file.mkdir()),
        replaced(lambda file: file.symlink_to("/dev/zero")),
        replaced(lambda file: file.symlink_to("nowhere")),
        replaced(lambda file: file.write_bytes(b"")),
        replaced(lambda file: file.write_bytes(b"SQLite format 3\0" * 500)),
        replaced(lambda file: sqlite3.connect(file).execute("pragma journal_mode = wal").connection.close()),
        replaced(lambda file: sqlite3.connect(file).execute("create table x (y)").connection.close()),
        replaced(sparse),
        bomb,
        change("drop table trial_params"),
        change("create view x as with recursive n(i) as (select 1 union all select i + 1 from n) select i from n"),
        change("create trigger t after insert on version_info begin select 1; end"),
        change("alter table trials add column c as (hex(zeroblob(500000000)))"),
        change("update alembic_version set version_num = 'v99'"),
        change("delete from studies"),
        change("insert into study_directions (direction, study_id, objective) values ('MINIMIZE', 1, 1)"),
        change("update study_directions set direction = 'UP'"),
        change("update study_user_attributes set value_json = ?", "[" * 100_000),
        change("update study_user_attributes set value_json = ?", '{"metric": "val_acc\\nhydra: {}"}'),
        change("update study_user_attributes set value_json = '[1]' where key = 'search'"),
        change("update trials set number = '../../../../etc'"),
        change("update trials set number = -1"),
        change("update trials set state = 'DONE'"),
        change("update trials set datetime_start = 'soon'"),
        change("update trial_values set value = 9e999, value_type = 'INF_POS'"),
        change("update trial_values set value = 'much'"),
        change("update trial_params set param_value = 'much'"),
        change("update trial_params set param_value = -1"),
        change("update trial_params set param_name = ?", "x" * 1000),
        change("update trial_params set distribution_json = '{}'"),
        change(
            "update trial_params set distribution_json = ?",
            '{"name": "CategoricalDistribution", "attributes": {"choices": [[1], {}]}}',
        ),
        change(
            "update trial_params set distribution_json = ?",
            '{"name": "FloatDistribution", "attributes": {"low": "a", "high": "b"}}',
        ),
        change(
            "update trial_params set distribution_json = ?",
            '{"name": "FloatDistribution", "attributes": {"low": -Infinity, "high": 1}}',
        ),
        change(
            "update trial_params set distribution_json = ?",
            f'{{"name": "IntDistribution", "attributes": {{"low": 0, "high": 1{"0" * 400}}}}}',
        ),
        change("insert into trial_user_attributes (trial_id, key, value_json) values (1, 'val_loss', '\"low\"')"),
        change("insert into trial_user_attributes (trial_id, key, value_json) values (1, 'x', ?)", "1" * 5000),
    ],
)
def test_any_study_db_gets_one_message(command, sweep, attack):
    attack()
    before = everything(str(SWEEP))
    done = command("compare", str(SWEEP))
    assert done.status == 2
    assert done.err.startswith(f"error: {SWEEP}/study.db is not to be read as the study of a search: "), done.err
    assert done.err.count("\n") == 1
    assert everything(str(SWEEP)) == before


@pytest.mark.parametrize("metric", ["val_acc", "val_loss"])
def test_a_trial_may_have_got_any_score_on_its_way(command, sweep, metric):
    change("update trials set state = 'PRUNED' where number = 1")()
    change("update study_user_attributes set value_json = ?", json.dumps({"metric": metric}))()
    for kind in ("INF_POS", "INF_NEG", "NAN"):
        change("update trial_intermediate_values set intermediate_value = null, intermediate_value_type = ?", kind)()
        change("update trial_values set value = null, value_type = 'INF_NEG' where trial_id = 2")()
        done = command("compare", str(sweep))
        assert done.status == 0, done.err
        assert done.err == ""
        assert (sweep / "results" / "slices.png").exists()


def test_a_study_with_more_rows_than_can_be_read_in_time_is_refused(command, sweep):
    many = "insert into trial_intermediate_values (trial_id, step, intermediate_value_type) "
    change(
        many + "with recursive n(i) as (select 2 union all select i + 1 from n limit 600000) select 1, i, 'NAN' from n"
    )()
    done = command("compare", str(SWEEP))
    assert done.status == 2
    assert "500,000 rows" in done.err


@pytest.mark.parametrize("make", [lambda file: file.symlink_to(Path("victim").absolute()), os.mkfifo, Path.mkdir])
def test_a_lock_is_a_file_of_its_own_or_none(command, sweep, make):
    """The trial is at work, as the study has it."""
    Path("victim").write_text("precious")
    write_run(sweep / "trial-1", status="running")
    (sweep / "trial-1" / ".lock").unlink(missing_ok=True)
    make(sweep / "trial-1" / ".lock")
    change("update trials set state = 'RUNNING', datetime_complete = null where number = 1")()
    done = command("compare", str(sweep))
    assert done.status == 0, done.err
    assert "trial-1    interrupted" in done.out
    assert Path("victim").read_text() == "precious"


# --------------------------------------------------------------------------------------------- what a report writes


@pytest.mark.parametrize(
    ("link", "there"),
    [
        ("results", "victim"),
        ("conf", "victim"),
        ("conf/model", "victim"),
        ("conf/experiment", "victim"),
        ("results/history.png", "victim/file"),
        ("conf/experiment/best.yaml", "victim/file"),
        ("conf/model/best.yaml", "victim/file"),
        ("results", "nowhere"),
    ],
)
def test_a_report_writes_in_its_folder_only(command, sweep, link, there):
    (Path.cwd() / "victim").mkdir()
    for name in ("file", "best.yaml", "history.png"):
        (Path.cwd() / "victim" / name).write_text("precious")
    (SWEEP / link).parent.mkdir(parents=True, exist_ok=True)
    (SWEEP / link).symlink_to(Path.cwd() / there)
    before = everything("victim")
    done = command("compare", str(SWEEP))
    assert everything("victim") == before
    assert not Path("nowhere").exists()
    whole = "/file" in there  # a link in place of a file is replaced by the file
    assert done.status == (0 if whole else 2), done.err
    assert whole or f"{SWEEP / link} is a link" in done.err
    assert "trial-0 *  complete" in done.out


def test_best_yaml_is_made_of_values_only(command, sweep):
    file = SWEEP / "trial-0" / ".hydra" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    evil = {
        "hydra": {"run": {"dir": "/evil"}},
        "defaults": ["/evil"],
        "optimized_metric": "x\nhydra: {run: {dir: /evil}}",
    }
    config |= evil | {"width": "a\n# @package evil\nhydra: {}"}
    config["model"] = {"_target_": "x", "defaults": ["/evil"], "extra": "#\n\u2028hydra: x"}
    config["optimizer"]["lr"] = 0.5
    file.write_text(yaml.safe_dump(config))
    hydra_yaml = SWEEP / "trial-0" / ".hydra" / "hydra.yaml"
    hydra_yaml.write_text(hydra_yaml.read_text().replace("schedule: cosine_swa", "schedule: ../../../../evil"))
    done = command("compare", str(SWEEP))
    assert done.status == 0, done.err
    best = SWEEP / "conf" / "experiment" / "best.yaml"
    text, written = best.read_text(), yaml.safe_load(best.read_text())
    assert text.splitlines()[0] == "# @package _global_"
    assert [line[:4] for line in text.splitlines()[1:3]] == ["# Th", "#   "]
    assert "/evil" not in text.replace("hydra: {run: {dir: /evil}}", "")
    assert "hydra" not in written
    assert {next(iter(choice)) for choice in written["defaults"]} == {
        f"override /{group}" for group in ("data", "model", "augment", "optimizer", "schedule", "trainer", "evaluate")
    }
    assert written["optimizer"] == {"lr": 0.5}
    assert "/evil" not in (SWEEP / "conf" / "model" / "best.yaml").read_text()


@pytest.mark.parametrize(
    "config",
    [{"data": None}, {"model": ["x"]}, {"optimizer": {"lr": "${"}}, {1: {2: 3}}, {"augment": {"strong": 7}}],
    ids=str,
)
def test_a_config_that_is_none_of_ours_leaves_the_table(command, sweep, config):
    file = SWEEP / "trial-0" / ".hydra" / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | config))
    done = command("compare", str(SWEEP))
    assert "trial-0 *  complete" in done.out
    assert "Traceback" not in done.err
    if done.status:
        assert done.status == 2
        assert f"{SWEEP}/trial-0/.hydra/config.yaml cannot be said as an experiment" in done.err


def test_what_is_to_be_typed_is_one_command_of_the_shell(command, sweep):
    odd = SWEEP.with_name("it's $(touch evil); #")
    SWEEP.rename(odd)
    done = command("compare", str(odd))
    assert done.status == 0, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("retrain")]
    words = shlex.split(line)
    assert words[words.index("--config-dir") + 1] == str(odd / "conf")
    assert command(*words[4:], "--cfg", "job").status == 0


# ------------------------------------------------------------------------------------------------------- names of a run

NAMES = [
    "[/draft]",
    "[bold",
    "<!--<script>",
    "</script><script>document.title='evil'</script>",
    "<img src=x onerror=document.title='evil'>",
    "$x^2$ and $\\frac{",
    "__proto__",
    "constructor",
    "=cmd|' /C calc'!A0",
    "_hidden",
    "x" * 900,
    ESCAPES,
]
STEERING = set(ESCAPES) - set("\n") - set(filter(str.isprintable, ESCAPES))


def write_runs(name: str) -> None:
    """Write two runs that call everything ``name``."""
    for number in (0, 1):
        folder = Path("outputs", f"{number}{name.replace('/', '-')[:100]}")
        named = {"x.note": f"{name}{number}", f"y.{name}": number}
        classes = [f"{name}{n}" for n in range(10)]
        dataset = {
            "name": name,
            "train": 9,
            "val": 9,
            "test": 1000,
            "md5": "0" * 32,
            "split_seed": 0,
            "classes": classes,
        }
        write_run(folder, name, named=named, dataset=dataset, error=name, recipe=None, seed=number)
        right = np.arange(1000) % 10
        said = np.where(np.arange(1000) < 5, (right + 1) % 10, right)
        arrays = {"probs": np.eye(10, dtype=np.float16)[said], "predicted": said, "labels": right}
        images = np.zeros((5, 28, 28), np.uint8)
        np.savez(folder / "results" / "predictions.npz", wrong=np.arange(5), images=images, **arrays)


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_is_nothing_but_a_name(command, place, name):
    write_runs(name)
    files = ["--csv=csv.csv", "--json=json.json", "--html=html.html", "--plot=plot.svg"]
    done = command("compare", "--columns", "name,x.note,task_name,error,tags", *files)
    assert done.status == 0, done.err
    assert done.out.startswith("2 runs: 2 finished")
    assert not STEERING & set(done.out)
    assert done.out.count("\n") == 8, "a title, a heading, two runs, and what was written"
    if name.isprintable() and len(name) < 100:
        assert f" {name}0 " in done.out
        assert pd.read_csv("csv.csv")["x.note"].tolist() == [f"{name}0", f"{name}1"]
    assert [run["x.note"] for run in json.loads(Path("json.json").read_text())] == [f"{name}0", f"{name}1"]
    text = Path("html.html").read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', text)
    assert not set("<>&") & set(data)
    assert json.loads(data)["runs"][0]["parameters"]["x.note"] == f"{name}0"
    for more in (
        ["--group-by"],
        ["--baseline", "outputs/" + min(p.name for p in Path("outputs").iterdir())],
        ["--filter", "seed == 0"],
    ):
        done = command("compare", *more)
        assert done.status == 0, done.err
        assert not STEERING & set(done.out)


@pytest.mark.slow
def test_a_page_with_any_names_works_in_a_browser(command, place, browser):
    for n, name in enumerate(NAMES):
        write_runs(name)
        Path("outputs").rename(f"runs{n}")
    assert command("compare", *map(str, Path().glob("runs*")), "--html", "page.html").status == 0
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.goto(f"file://{place / 'page.html'}")
    assert page.title() == "mnist_exp: runs compared"
    for chart in ("curves", "scatter", "parallel"):
        page.locator(f"#{chart}").scroll_into_view_if_needed()
        page.wait_for_selector(f"#{chart} :is(.main-svg, .nothing)", state="attached")
    assert page.locator("svg b, svg img, svg script").count() == 0
    assert page.locator("#table tbody tr").count() == 2 * len(NAMES)
    assert page.locator("#wall figure").count() == 5
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("#confusion td").count() == 100
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    assert problems == []


@pytest.mark.slow
def test_a_page_of_many_points_works_in_a_browser(command, place, browser):
    write_run(Path("outputs/r0"))
    row = "{},strong,0.1,0.5,90,0.5,80,1,1\n"
    with (place / "outputs/r0/history.csv").open("a") as file:
        file.writelines(row.format(epoch) for epoch in range(3, 201))
    for n in range(1, 800):
        shutil.copytree("outputs/r0", f"outputs/r{n}")
    assert command("compare", "--html", "page.html").status == 0
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"file://{place / 'page.html'}")
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    page.locator("#curves").scroll_into_view_if_needed()
    page.wait_for_function("document.getElementById('curves').data?.length === 43")
    points = page.evaluate("document.getElementById('curves').data.map(t => t.x.filter(x => x !== null).length)")
    assert sum(points) == 800 * 200 + 3 * 200, "each run, the mean of all and the ends of its band"
    assert problems == []


def test_the_name_of_a_folder_may_be_any_bytes(command, place):
    write_run(Path(os.fsdecode(b"outputs/\xff[b]\x1b[2J")))
    files = ["--csv=runs.csv", "--json=runs.json", "--html=runs.html", "--plot=runs.png"]
    done = command("compare", *files, "--columns", "name,path")
    assert done.status == 0, done.err
    shown = "\\udcff[b]\\x1b[2J"
    assert f"\n{shown} " in done.out
    assert pd.read_csv("runs.csv")["name"].tolist() == ["\\udcff[b]\x1b[2J"]
    assert json.loads(Path("runs.json").read_text())[0]["name"] == "\\udcff[b]\x1b[2J"
    assert shown.replace("\\", "\\\\") in Path("runs.html").read_text()


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_study_may_have_any_name(command, sweep, name):
    change("update studies set study_name = ?", name[:400].encode(errors="replace").decode())()
    change("update trial_params set param_name = ?", f"optimizer.{name[:100]}".encode(errors="replace").decode())()
    done = command("compare", str(sweep))
    assert done.status == 0, done.err
    assert not STEERING & set(done.out)
    assert "trial-0 *" in done.out
    assert {file.name for file in (sweep / "results").iterdir()} >= {"history.png", "slices.png", "parallel.png"}


def test_a_column_of_a_run_changes_no_filter(command, place):
    write_run(Path("outputs/good"), named={"optimizer.lr": 0.5})
    odd = {
        "99.5": 0,
        "> 80.5": 0,
        "val_acc": 0,
        "x`+@y.z": 1,
        "optimizer.lr > 0.1": 0,
        "a.b`": 1,
        "\0.x": 1,
        "abs": 1,
        "True": 0,
    }
    write_run(Path("outputs/odd"), named=odd)
    for query in (
        "val_acc > 80.5",
        "optimizer.lr > 0.1",
        "val_acc > 80.5 and abs(val_acc) < 99.5",
        "seed == 1 and True",
    ):
        done = command("compare", "--filter", query, "--columns", "name")
        assert done.status == 0, done.err
        assert "good" in done.out
    done = command("compare", "--filter", "@os.system('touch evil') == 0")
    assert done.status == 2
    assert not Path("evil").exists()


# --------------------------------------------------------------------------------------- files that the user has named


@pytest.fixture
def run(place) -> Path:
    write_run(Path("outputs/x"))
    return Path("outputs/x")


KINDS = {
    "csv": ("csv", b"name,seed,val_acc"),
    "json": ("json", b"["),
    "html": ("html", b"<!doctype"),
    "plot": ("svg", b"<?xml"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_is_followed_and_a_file_keeps_its_mode(command, run, kind):
    ending, begins = KINDS[kind]
    Path("there").mkdir()
    target, link = Path("there", f"old.{ending}"), Path(f"link.{ending}")
    target.write_text("old")
    target.chmod(0o640)
    os.chown(target, *((1234, 1234) if os.geteuid() == 0 else (-1, -1)))
    link.symlink_to(target)
    before = target.stat()
    assert command("compare", f"--{kind}", str(link)).status == 0
    assert link.is_symlink()
    after = target.stat()
    assert target.read_bytes().startswith(begins)
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert list(Path("there").iterdir()) == [target]
    link.unlink()
    link.symlink_to("there/new." + ending)
    old = os.umask(0o027)
    try:
        assert command("compare", f"--{kind}", str(link)).status == 0
    finally:
        os.umask(old)
    assert stat.S_IMODE(Path("there/new." + ending).stat().st_mode) == 0o640


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_and_a_pipe_are_written_to(command, run, kind):
    ending, begins = KINDS[kind]
    pipe, content = Path(f"pipe.{ending}"), []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: content.append(pipe.read_bytes()))
    reader.start()
    assert command("compare", f"--{kind}", str(pipe)).status == 0
    reader.join(10)
    assert content[0].startswith(begins)
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    with contextlib.suppress(PermissionError):  # only root makes devices
        for name, minor, status in (("null", 3, 0), ("full", 7, 1)):
            device = Path(f"{name}.{ending}")
            os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, minor))
            done = command("compare", f"--{kind}", str(device))
            assert done.status == status, done.err
            assert stat.S_ISCHR(device.lstat().st_mode)
        assert done.err == f"error: full.{ending} cannot be written: No space left on device\n"


@pytest.mark.parametrize("kind", KINDS)
def test_standard_output_gets_the_file_alone(shell, run, kind):
    words = [sys.executable, "-m", "mnist_exp", "compare", f"--{kind}", "-"]
    done = subprocess.run(words, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"\x89PNG" if kind == "plot" else KINDS[kind][1])
    assert b"1 run: 1 finished" not in done.stdout
    assert b"1 run: 1 finished" in done.stderr
    assert not Path("-").exists()


def test_a_pipe_by_its_number_gets_the_file(run):
    words = [sys.executable, "-m", "mnist_exp", "compare", "--csv", "/dev/stdout"]
    done = subprocess.run(words, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert KINDS["csv"][1] in done.stdout


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("run.json/x", "run.json is no folder"),
        ("loop", "Too many levels"),
        ("sealed/x", "may not be changed"),
        ("y" * 300, "too long"),
    ],
)
def test_what_cannot_be_written_is_said_and_left(command, run, name, reason):
    Path("run.json").write_text("old")
    Path("loop").symlink_to("loop")
    Path("sealed").mkdir(mode=0o500)
    if name.startswith("sealed") and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    done = command("compare", "--csv", "good.csv", "--json", name)
    assert done.status == 2
    assert done.err.startswith(f"error: --json {name} cannot be written: ")
    assert reason in done.err
    assert done.err.count("\n") == 1
    assert not done.out
    assert not Path("good.csv").exists(), "before anything is done"
    assert Path("run.json").read_text() == "old"
    assert Path("loop").is_symlink()


def test_a_search_that_may_not_be_written_to_is_still_reported(command, sweep):
    shutil.rmtree(sweep / "results", ignore_errors=True)
    (sweep / "results").write_text("a file, where a folder is to be made")
    done = command("compare", str(SWEEP))
    assert done.status == 0, done.err
    assert "trial-0 *  complete" in done.out
    assert "no pictures and no experiment: " in done.out
    assert str(sweep / "results") in done.out


@pytest.mark.parametrize("name", ["trial-0", ".study", "study.db", ".study.lock"])
def test_a_search_that_goes_on_writes_through_no_link(command, place, name):
    (place / "victim").mkdir()
    SWEEP.mkdir(parents=True)
    (SWEEP / name).symlink_to(place / "victim" / ("" if name == "trial-0" else "file"))
    search = ("--multirun", "hparams_search=quick", *SMALL, "hydra.sweeper.n_trials=1", f"hydra.sweep.dir={SWEEP}")
    done = command(*search, "hydra.sweeper.study_name=mine")
    assert f"{name} is a link" in done.out + done.err
    assert "Traceback" not in done.err
    assert not list((place / "victim").iterdir())


def test_a_study_says_no_more_than_the_values_of_what_is_searched(command, place):
    """Of a trial that is to be continued: its parameters become overrides."""
    search = ("--multirun", "hparams_search=quick", *SMALL, "hydra.sweeper.n_trials=1", f"hydra.sweep.dir={SWEEP}")
    assert command(*search).status == 0
    shutil.rmtree(SWEEP / "trial-0")
    change("UPDATE trials SET state = 'RUNNING'")()
    change("UPDATE trial_params SET param_name = 'hydra.run.dir' WHERE param_name = 'optimizer.lr'")()
    done = command(*search)
    assert (done.status, done.err) == (
        2,
        "error: trial 0 of the study has hydra.run.dir, which this search does not draw\n",
    ), done
    assert not (SWEEP / "trial-0").exists()


def test_a_folder_that_cannot_be_made_is_named_with_the_way_out(command, place):
    (place / "outputs").write_text("a file")
    done = command("train", "debug=tiny")
    assert done.status == 1
    assert "outputs" in done.err
    assert "paths.outputs=FOLDER" in done.err
    assert "Traceback" not in done.err
