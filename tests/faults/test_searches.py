"""A search whose machine fails at each change of its files and entry in its study: it completes, with the same trials."""

import contextlib
import itertools
import random
import signal
import time
from pathlib import Path

import pytest
from faulty import SEARCH, failures, found, states, sweep, trials
from helpers import info, start, wait_until


def fail_and_go_on(machine, place: Path, whole: list[dict], kind: str, at: int) -> None:
    """Run into the fault, look at what is left, repeat the command, and find what the search finds otherwise.

    Only a trial whose point had not been drawn may get another one.
    """
    done = machine(place, *SEARCH, kind=kind, at=at)
    if kind in ("full", "once"):
        assert done.status in (0, 1), done
        assert done.err.count("error: ") == (done.status == 1), done.err
        assert "full" in done.err or done.status == 0, done.err
    assert "Traceback" not in done.out + done.err
    drawn = []
    if (sweep(place) / "study.db").exists():
        with contextlib.suppress(KeyError):  # the study had not been made yet
            drawn = [trial.params for trial in trials(place)]
            assert "FAIL" not in states(place)
    compared = machine(place, "compare", "outputs")
    assert compared.status in (0, 2), compared
    assert "Traceback" not in compared.err
    again = machine(place, *SEARCH)
    assert again.status == 0, again.err
    now = found(place)
    for mine, same, before in itertools.zip_longest(now, whole, drawn):
        assert mine["state"] == "COMPLETE"
        if before is None or len(before) == len(same["params"]):
            assert mine == same
    assert len({str(trial["params"]) for trial in now}) == len(now)
    assert (sweep(place) / "conf" / "experiment" / "best.yaml").exists()
    assert not [p for p in place.rglob(".*") if "unfinished" in p.name]


def test_an_epoch_that_the_study_has_not_heard_of_is_told_later(machine, place, whole_search):
    at = whole_search[1].index("study set_trial_intermediate_value") + 1
    fail_and_go_on(machine, place, whole_search[0], "kill", at)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["kill", "full"])
def test_a_search_completes_from_every_boundary(machine, tmp_path, whole_search, kind):
    result, boundaries = whole_search
    assert not failures(boundaries, lambda at: fail_and_go_on(machine, tmp_path / str(at), result, kind, at))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(2))
def test_a_search_that_is_killed_five_times_at_any_moment(place, seed):
    """10 kills in all, of whole processes; every trial is a run whose epochs the study has heard of."""
    draw = random.Random(seed)
    arguments = [*SEARCH, "hydra.sweeper.n_trials=5", "data.train_limit=1000", "data.batch_size=4"]
    for _ in range(5):
        process = start(place, *arguments)
        wait_until(lambda process=process: process.poll() is not None or list(sweep(place).glob(".sweeper-*")))
        time.sleep(draw.uniform(0, 4))
        process.kill()
        assert process.wait() in (0, -signal.SIGKILL), process.stderr.read()
    last = start(place, *arguments)
    assert last.wait(300) == 0, last.stderr.read()
    assert states(place) == ["COMPLETE"] * 5
    assert len({str(trial.params) for trial in trials(place)}) == 5
    for trial in trials(place):
        about = info(sweep(place) / f"trial-{trial.number}")
        assert about["metrics"]["val_acc"] == trial.value == trial.intermediate_values[1]
