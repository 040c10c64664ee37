"""A search whose machine fails at each change of its files and entry in its study: it completes, with the same trials."""

from pathlib import Path

import pytest
from faulty import SEARCH, found


def fail_and_go_on(machine, place: Path, whole_search: tuple[list[dict], list[str]], kind: str, at: int) -> None:
    done = machine(place, *SEARCH, kind=kind, at=at)
    if kind in ("full", "once"):
        assert done.err.count("error: ") == (done.status == 1), done.err
        assert done.status in (0, 1), done
    assert "Traceback" not in done.out + done.err
    compared = machine(place, "compare", "outputs")
    assert compared.status in (0, 2), compared
    assert "Traceback" not in compared.err
    again = machine(place, *SEARCH)
    assert again.status == 0, again.err
    assert found(place) == whole_search[0]
    assert not [p for p in place.rglob(".*") if "unfinished" in p.name]


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("kind", ["kill", "full", "once"])
def test_a_search_completes_from_every_boundary(machine, tmp_path, whole_search, kind):
    failed = {}
    for at, boundary in enumerate(whole_search[1], 1):
        try:
            fail_and_go_on(machine, tmp_path / str(at), whole_search, kind, at)
        except AssertionError as error:
            failed[at] = f"{boundary}: {error}"
    assert not failed
