"""Whatever is typed, and whatever the files hold: one message at most, in bounded time and memory, and nothing else touched.

The fast suite tries some hundred cases, the same every time; the slow one more than ten thousand, new ones every time.
"""

import shutil
from pathlib import Path

import child
import pytest
import strategies
from helpers import SMALL, run_command
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from search.small import TINY

_ROOM = (*("good", "other", "bad", "sweep"), "FOLDER")
_SMALL = [*SMALL, "schedule.extra_epochs=0", "evaluate.tta_runs=1"]


def few(cases: int):
    """A share of the fast suite: ``cases``, the same every time."""
    return settings(max_examples=cases, derandomize=True, **_ALWAYS)


def many(cases: int):
    """A share of the slow suite: ``cases``, new ones every time."""
    return settings(max_examples=cases, print_blob=True, **_ALWAYS)


_ALWAYS = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.generate),  # cases are small as they are
}


@pytest.fixture(scope="session")
def room(tmp_path_factory, data_root) -> Path:
    """A folder with two good runs, one that was cut off, and a search; made in this process, which so has all imports."""
    room = tmp_path_factory.mktemp("room")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(room)
        patch.setenv("MNIST_EXP_DATA", str(data_root))
        for name, seed in (("good", 1), ("other", 2)):
            assert run_command("train", *_SMALL, f"seed={seed}", "optimizer.lr=0.02", f"hydra.run.dir={name}") == 0
        assert run_command(*TINY, "hydra.sweeper.n_trials=2", "paths.outputs=.") == 0
        assert run_command("train", *_SMALL, "trainer.max_steps=1", "hydra.run.dir=bad") == 0
        assert run_command("compare", ".", "--html", "page.html", "--plot", "curves.png") == 0
    shutil.move(room / "sweeps" / "quick", room / "sweep")
    described = room / "bad" / "run.json"
    described.write_text(described.read_text().replace('"status": "finished"', '"status": "interrupted"'))
    (room / "FOLDER").mkdir()
    return room


@pytest.fixture
def lay(room, tmp_path):
    """Lay out the folder of a case, the same each time: a copy of ``room``'s ``names``."""
    work = tmp_path / "work"

    def call(*names: str) -> Path:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for name in names:
            shutil.copytree(room / name, work / name)
        return work

    return call


def check(ended: child.Ended, statuses: tuple[int, ...] = (0, 1, 2, 130)) -> None:
    """The property."""
    said = f"\n{ended.out[-1500:]}\n{ended.err[-3000:]}"
    assert ended.status in statuses, f"exit status {ended.status}{said}"
    assert "Traceback (most recent call last)" not in ended.out + ended.err, said
    assert not ended.strayed, f"{ended.strayed}{said}"
    assert ended.seconds < child.SECONDS, f"{ended.seconds:.1f} s{said}"
    assert ended.mebibytes < child.MEBIBYTES, f"{ended.mebibytes:.0f} MiB{said}"
    if ended.status == 2:
        assert len(ended.err) < 6000, f"a message of {len(ended.err)} characters"


# ------------------------------------------------------------------------------------------------------- overrides


def try_overrides(lay, words):
    work = lay()
    cheap = ["model.channels=[2,2,2]", "trainer.max_steps=1", "hydra.run.dir=outputs/run"]
    check(child.run(["train", *_SMALL, *words, *cheap], work))


@few(60)
@given(words=strategies.overrides())
def test_any_override(lay, words):
    try_overrides(lay, words)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@many(1500)
@given(words=strategies.overrides())
def test_any_override_at_length(lay, words):
    try_overrides(lay, words)


# --------------------------------------------------------------------------------------------- options of compare


def try_options(lay, words):
    work = lay(*_ROOM)
    check(child.run(["compare", *words], work))


@few(100)
@given(words=strategies.options())
def test_any_option_of_compare(lay, words):
    try_options(lay, words)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@many(2000)
@given(words=strategies.options())
def test_any_option_of_compare_at_length(lay, words):
    try_options(lay, words)


# ------------------------------------------------------------------------------------------------ damaged folders

_READ = (
    *(["good", "bad"], ["good", "bad", "--html", "x.html", "--plot", "x.png"], ["bad", "good", "--baseline", "good"]),
    *(
        ["good", "bad", "--group-by"],
        ["good", "bad", "--group-by", "seed,data.mean", "--baseline", "good", "--csv", "x.csv"],
    ),
)
_GO_ON = (
    ["train", "resume=bad", "trainer.max_steps=2"],
    ["train", "resume=bad", "schedule.extra_epochs=1", "trainer.max_steps=1", "hydra.run.dir=new"],
)


def try_comparing(lay, done, words):
    work = lay("good", "bad")
    strategies.damage(work / "bad", done)
    ended = child.run(["compare", *words], work)
    check(ended)
    if ended.status == 0:  # a run beside the bad one is still there
        assert "good" in ended.out


def try_searches(lay, done):
    work = lay("good", "sweep")
    strategies.damage(work / "sweep", done)
    check(child.run(["compare", "sweep"], work))


def try_resuming(lay, done, words):
    work = lay("bad")
    strategies.damage(work / "bad", done)
    check(child.run(words, work))


@few(200)
@given(done=strategies.damages(), words=st.sampled_from(_READ))
def test_any_damage_to_a_run(lay, done, words):
    try_comparing(lay, done, words)


@few(10)
@given(done=strategies.damages())
def test_any_damage_to_a_search(lay, done):
    try_searches(lay, done)


@few(30)
@given(done=strategies.damages(), words=st.sampled_from(_GO_ON))
def test_any_damage_to_a_run_that_is_resumed(lay, done, words):
    try_resuming(lay, done, words)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@many(4000)
@given(done=strategies.damages(), words=st.sampled_from(_READ))
def test_any_damage_to_a_run_at_length(lay, done, words):
    try_comparing(lay, done, words)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@many(150)
@given(done=strategies.damages())
def test_any_damage_to_a_search_at_length(lay, done):
    try_searches(lay, done)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@many(700)
@given(done=strategies.damages(), words=st.sampled_from(_GO_ON))
def test_any_damage_to_a_run_that_is_resumed_at_length(lay, done, words):
    try_resuming(lay, done, words)


# ------------------------------------------------------------------------------------------------- imported files

_IMPORTED = strategies.imported()


def try_importing(lay, name, done, named):
    work = lay()
    for file, content in _IMPORTED.items():
        target = work / "from" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    path = Path("from", name).parts[:2]
    strategies.damage(work.joinpath(*path), done) if len(Path(name).parts) > 1 else strategies._damage(
        work / "from" / name, done[0]
    )
    ended = child.run(["data", "import", str(Path(*path)), *named, "data.root=data"], work)
    check(ended)
    if ended.status:
        assert not [p for p in work.glob("data/**/*") if p.is_file() and not p.name.endswith(".lock")], (
            "something was installed"
        )


_IMPORTS = {
    "name": st.sampled_from(sorted(_IMPORTED)),
    "done": strategies.damages(),
    "named": st.sampled_from([[], ["--name", "fashion_mnist"], ["--name", "qmnist"]]),
}


@few(100)
@given(**_IMPORTS)
def test_any_file_to_import(lay, name, done, named):
    try_importing(lay, name, done, named)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@many(2400)
@given(**_IMPORTS)
def test_any_file_to_import_at_length(lay, name, done, named):
    try_importing(lay, name, done, named)
