"""Whatever is typed, and whatever the files hold: one message at most, in bounded time and memory, and nothing else touched.

The fast suite tries some hundred cases, the same every time; the slow one more than ten thousand, new ones every time.
"""

from pathlib import Path

import child
import strategies
from exploring import SHORT, cases, check
from hypothesis import strategies as st

_ROOM = (*("good", "other", "bad", "sweep"), "FOLDER")


@cases(30, 1500, words=strategies.overrides())
def test_any_override(lay, words):
    cheap = ["model.channels=[2,2,2]", "trainer.max_steps=1", "hydra.run.dir=outputs/run"]
    check(child.run(["train", *SHORT, *words, *cheap], lay()))


@cases(50, 2000, words=strategies.options())
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


@cases(80, 4000, done=strategies.damages(), words=st.sampled_from(_READ))
def test_any_damage_to_a_run(lay, done, words):
    work = lay("good", "bad")
    strategies.damage(work / "bad", done)
    ended = child.run(["compare", *words], work)
    check(ended)
    if ended.status == 0:  # a run beside the bad one is still there
        assert ("sample" if words[-1] == "--group-by" else "good") in ended.out


@cases(5, 150, done=strategies.damages())
def test_any_damage_to_a_search(lay, done):
    work = lay("sweep")
    strategies.damage(work / "sweep", done)
    check(child.run(["compare", "sweep"], work))


@cases(12, 700, done=strategies.damages(), words=st.sampled_from(_GO_ON))
def test_any_damage_to_a_run_that_is_resumed(lay, done, words):
    work = lay("bad")
    strategies.damage(work / "bad", done)
    check(child.run(words, work))


# ------------------------------------------------------------------------------------------------- imported files

_IMPORTED = strategies.imported()


@cases(
    50,
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
