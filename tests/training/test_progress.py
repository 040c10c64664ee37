"""What is shown while a run goes on."""

import io
import itertools

import pytest
import rich
from rich.console import Console

from mnist_exp.training.progress import RunProgress


def clock(seconds: float):
    """Return a clock that goes on by so much each time it is looked at."""
    return itertools.count(0, seconds).__next__


@pytest.fixture
def screen(monkeypatch) -> io.StringIO:
    screen = io.StringIO()
    monkeypatch.setattr(rich, "get_console", lambda: Console(file=screen, force_terminal=True, width=120))
    return screen


def test_the_terminal_gets_a_bar_with_speed_loss_and_time_left(screen):
    now = [0.0]
    with RunProgress(2, 10_000, 600, 900, on_cpu=False, time_of=lambda: now[0]) as progress:
        progress.start_epoch(1, 0)
        for done in range(256, 4000, 256):
            now[0] += 2.0
            progress.step(done, 0.5)
        assert "128 images/s  loss 0.5000" in progress.task.fields["facts"]
        # two epochs with 600 images scored in each, 900 at the end: a third of the time each
        assert progress.task.time_remaining == -(-(2 * (10_000 + 200) + 300 - 3840) // 128)


def test_no_line_tells_a_speed_before_it_is_known(caplog):
    now = [0.0]
    with caplog.at_level("INFO"), RunProgress(3, 10_000, 0, 0, on_cpu=False, time_of=lambda: now[0]) as progress:
        for epoch in (1, 2, 3):
            progress.start_epoch(epoch, 0)
            now[0] += 40.0  # scoring of the epoch before; then a line is due
            for done in range(100, 1000, 100):
                now[0] += 10.0
                progress.step(done, 0.5)
                assert not progress.task.fields["facts"].startswith("0 images")
    assert "  10 images/s" in caplog.text
    assert "  0 images/s" not in caplog.text


def test_a_resumed_epoch_does_not_count_as_speed():
    now = [0.0]
    progress = RunProgress(3, 10_000, 0, 0, on_cpu=False, time_of=lambda: now[0])
    progress.start_epoch(2, 5_000)
    for done in range(5_100, 6_100, 100):
        now[0] += 1.0
        progress.step(done, 0.5)
    assert progress.task.speed == pytest.approx(100)
    assert progress.task.percentage == pytest.approx(100 * 16_000 / 30_000)


def test_a_long_wait_is_announced_early_with_the_way_out(caplog):
    for on_cpu, images, expected in ((True, 55_000, True), (True, 400, False), (False, 55_000, False)):
        caplog.clear()
        with RunProgress(4, images, 500, 1000, on_cpu=on_cpu, time_of=clock(0.5)) as progress:
            progress.start_epoch(1, 0)
            for done in range(10, 300, 10):
                progress.step(done, 0.5)
        assert ("experiment=sprint" in caplog.text) == expected
