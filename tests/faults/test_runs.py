"""A run whose machine fails at each change of its files: whatever it was, it goes on to the same result."""

import random
import signal
import time
from pathlib import Path

import pytest
from faulty import RUN, failures
from helpers import SLOW, assert_same_result, info, start, wait_until


def fail_and_go_on(machine, place: Path, whole: Path, kind: str, at: int) -> None:
    """Run into the fault, look at what is left, go on, and end as the run that nothing happened to."""
    done = machine(place, *RUN, kind=kind, at=at)
    if kind in ("full", "once"):
        # what fails once may be done without: a folder that cannot be opened is not synced
        assert done.status == 1 or (done.status == 0 and (kind == "once" or "train.log" in done.seen[at - 1])), done
        assert done.err.count("error: ") == (done.status == 1), done.err
        assert "the disk is full" in done.err or done.status == 0 or "No space left" in done.err, done.err
    else:
        assert done.status in ((137,) if kind == "kill" else (-signal.SIGXFSZ, 0)), done
    assert "Traceback" not in done.out + done.err
    compared = machine(place, "compare", "run")
    begun = (place / "run" / "run.json").exists()
    assert compared.status == (0 if begun else 2), compared
    assert "Traceback" not in compared.err
    if not begun or info(place / "run")["status"] != "finished":
        again = machine(place, *(["train", "resume=run"] if begun else RUN))
        assert again.status == 0, again.err
    assert info(place / "run")["status"] == "finished"
    assert_same_result(whole, place / "run")
    assert not [p for p in place.rglob(".*") if "unfinished" in p.name]


SHARE = 16  # the fast suite fails at one in so many boundaries


@pytest.mark.parametrize("kind", ["kill", pytest.param("full", marks=pytest.mark.slow)])
def test_a_run_goes_on_from_a_share_of_all_boundaries(machine, tmp_path, whole_run, kind):
    first = 1 + SHARE // 2 * (kind == "full")
    for at in range(first, len(whole_run[1]) + 1, SHARE):
        fail_and_go_on(machine, tmp_path / str(at), whole_run[0], kind, at)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["kill", "tear", "full", "once"])
def test_a_run_goes_on_from_every_boundary(machine, tmp_path, whole_run, kind):
    result, boundaries = whole_run
    assert not failures(boundaries, lambda at: fail_and_go_on(machine, tmp_path / str(at), result, kind, at))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_is_killed_five_times_at_any_moment(place, seed):
    """20 kills in all, of whole processes."""
    draw = random.Random(seed)
    whole, run = start(place, "train", *SLOW, "hydra.run.dir=whole"), place / "killed"
    for kill in range(5):
        process = start(place, "train", *([f"resume={run}"] if kill else [*SLOW, f"hydra.run.dir={run}"]))

        def begun(process=process, kill=kill) -> bool:
            about = info(run) if (run / "run.json").exists() else {}
            return process.poll() is not None or (about.get("status"), about.get("resumed")) == ("running", kill)

        wait_until(begun)
        time.sleep(draw.uniform(0, 2))
        process.kill()
        if process.wait() == 0:  # it was quicker
            break
        assert process.returncode == -signal.SIGKILL, process.stderr.read()
    if info(run)["status"] != "finished":
        last = start(place, "train", f"resume={run}")
        assert last.wait(300) == 0, last.stderr.read()
    assert whole.wait(300) == 0
    assert_same_result(place / "whole", run)
