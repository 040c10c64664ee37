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


_ALWAYS = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.generate),  # cases are small as they are
}


def cases(few: int, many: int, **drawn):
    """Make a test of a function of one case: ``few`` of them, the same every time; in the slow suite ``many`` new ones."""
    lengths = [
        pytest.param(settings(max_examples=few, derandomize=True, **_ALWAYS), id="few"),
        pytest.param(
            settings(max_examples=many, print_blob=True, **_ALWAYS),
            id="many",
            marks=[pytest.mark.slow, pytest.mark.timeout(7200)],
        ),
    ]

    def decorate(case):
        @pytest.mark.parametrize("length", lengths)
        def test(lay, length):
            @length
            @given(**drawn)
            def explore(**found):
                case(lay, **found)

            explore()

        return test

    return decorate


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


@cases(60, 1500, words=strategies.overrides())
def test_any_override(lay, words):
    cheap = ["model.channels=[2,2,2]", "trainer.max_steps=1", "hydra.run.dir=outputs/run"]
    check(child.run(["train", *_SMALL, *words, *cheap], lay()))


@cases(100, 2000, words=strategies.options())
def test_any_option_of_compare(lay, words):
    check(child.run(["compare", *words], lay(*_ROOM)))


# ------------------------------------------------------------------------------------------------ damaged folders

_READ = (
    *(["good", "bad"], ["good", "bad", "--html", "x.html", "--plot", "x.png"], ["bad", "good", "--baseline", "good"]),
    *(
        ["good", "bad", "--group-by"],
        ["good", "bad", "--group-by", "seed,data.mean", "--baseline", "good", "--csv", "x"],
    ),
)
_GO_ON = (
    ["train", "resume=bad", "trainer.max_steps=2"],
    ["train", "resume=bad", "schedule.extra_epochs=1", "trainer.max_steps=1", "hydra.run.dir=new"],
)


@cases(200, 4000, done=strategies.damages(), words=st.sampled_from(_READ))
def test_any_damage_to_a_run(lay, done, words):
    work = lay("good", "bad")
    strategies.damage(work / "bad", done)
    ended = child.run(["compare", *words], work)
    check(ended)
    if ended.status == 0:  # a run beside the bad one is still there
        assert "good" in ended.out


@cases(10, 150, done=strategies.damages())
def test_any_damage_to_a_search(lay, done):
    work = lay("sweep")
    strategies.damage(work / "sweep", done)
    check(child.run(["compare", "sweep"], work))


@cases(30, 700, done=strategies.damages(), words=st.sampled_from(_GO_ON))
def test_any_damage_to_a_run_that_is_resumed(lay, done, words):
    work = lay("bad")
    strategies.damage(work / "bad", done)
    check(child.run(words, work))


# ------------------------------------------------------------------------------------------------- imported files

_IMPORTED = strategies.imported()


@cases(
    100,
    2400,
    place=st.sampled_from(sorted({Path(name).parts[0] for name in _IMPORTED})),
    done=strategies.damages(),
    named=st.sampled_from([[], ["--name", "fashion_mnist"], ["--name", "qmnist"]]),
)
def test_any_file_to_import(lay, place, done, named):
    work = lay()
    for file, content in _IMPORTED.items():
        (work / file).parent.mkdir(exist_ok=True)
        (work / file).write_bytes(content)
    strategies.damage(work / place, done)
    ended = child.run(["data", "import", place, *named, "data.root=data"], work)
    check(ended)
    if ended.status:
        assert not list(work.glob("data/**/*-ubyte")), "something was installed"
        assert not list(work.glob("data/**/*.csv")), "something was installed"
