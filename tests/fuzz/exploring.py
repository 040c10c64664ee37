"""Many cases of one test, and what holds in each."""

import child
import pytest
from helpers import SMALL
from hypothesis import HealthCheck, Phase, given, settings

SHORT = [*SMALL, "schedule.extra_epochs=0", "evaluate.tta_runs=1"]
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
