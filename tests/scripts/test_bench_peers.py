"""The benchmark beside other ways to train: what it measures of a process, what it tells, and all of it once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, write_digits
from PIL import Image

SCRIPTS = ROOT / "scripts"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def row(name: str, round_: int, speed: float, *scores: float) -> dict:
    epochs = [{"epoch": n, "seconds": 10.0 * n, "test_acc": score} for n, score in enumerate(scores, 1)]
    about = {"competitor": name, "round": round_, "status": "ok", "precision": "fp32", "images_per_s": speed}
    return about | {"seconds": 10.0 * len(scores), "wall_seconds": 60.0, "memory_mib": 500.0, "epochs": epochs}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere children are not seen")
def test_memory_is_of_a_process_and_its_children(place):
    hold = "x = b'x' * (150 << 20); import time; time.sleep(1)"
    child = f"import subprocess, sys; {hold.partition(';')[0]}; subprocess.run([sys.executable, '-c', {hold!r}])"
    # in a small process: what the starting one holds counts
    asked = "import sys, pathlib, measure; print(*measure.run_process(['-c', sys.argv[1]], pathlib.Path())[:4])"
    words, known = [sys.executable, "-c", asked, child], {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    done = subprocess.run(words, cwd=place, env=known, capture_output=True, text=True, check=True)
    status, seconds, _, memory_mib = map(float, done.stdout.split())
    assert status == 0
    assert 300 < memory_mib < 400
    assert seconds > 1


def test_a_time_is_a_mean_only_where_every_round_reached_it():
    from peers.report import time_to

    runs = [row("a", 1, 100.0, 98.0, 99.0, 99.6), row("a", 2, 100.0, 99.1, 99.0, 99.4)]
    assert time_to(runs, 99.0) == "15.0 s"
    assert time_to(runs, 99.5) == "1 of 2"
    assert time_to([row("a", 1, 100.0)], 99.0) == "-"


def test_ratios_are_of_the_same_round():
    from peers.report import table

    one = [row("one_epoch", 1, 100.0, 99.0), row("one_epoch", 2, 400.0, 99.0)]
    fast = [row("fast", 1, 200.0, 99.0), row("fast", 2, 1200.0, 99.0), row("fast", 3, 1.0, 99.0)]
    skipped = {"competitor": "keras", "round": 1, "status": "skipped", "reason": "it is not installed"}
    matmul = [{"fp32": 1e6, "bf16": 2e6, "threads": 1}]
    later = row("fast", 1, 7.0, 99.0) | {"call": 2}
    found = {"runs": [*one, *fast, skipped], "operations": {"fast": 1e3}, "matmul": matmul, "machine": {"cpu": "any"}}
    text = table(found)
    line = next(line for line in text.splitlines() if line.startswith("fast"))
    assert "2.5 (2 to 3)" in line
    both = table(found | {"runs": [*one, *fast, later]})
    assert "2.5 (2 to 3)" in both, "the first round of another call was at another time"
    assert " 20.0 %" in line, "200 images/s of 1,000 operations each, of 1e6"
    assert "keras: skipped, it is not installed" in text


def bench(*arguments: str) -> str:
    words = [sys.executable, str(SCRIPTS / "bench_peers.py"), *arguments]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_peers_are_measured_once_each(place):
    write_digits(place / "data", 800, 200)
    common = ["--data", "data", "--output", "out", "--rounds", "1", "--epochs", "2", "--images", "256"]
    small = ["data=sample", "data.train_limit=800", "model.channels=[4,8,8]"]
    peers = ["example", "dense", "one_epoch", "original_bf16"]
    bench(*common, *small, "--only", *peers, "fast")
    before = json.loads(Path("out/peers.json").read_text())["runs"]
    text = bench(*common, *small, "--only", *peers, "fast", "default")
    found = json.loads(Path("out/peers.json").read_text())
    assert found["runs"][:5] == before, "what was measured is not measured again"
    runs = {row["competitor"]: row for row in found["runs"]}
    assert set(runs) == {*peers, "fast", "default"}
    assert all(row["status"] == "ok" and row["images_per_s"] > 0 and row["memory_mib"] > 100 for row in found["runs"])
    assert [len(runs[name]["epochs"]) for name in ("example", "dense", "one_epoch", "fast")] == [2, 2, 1, 1]
    assert runs["example"]["images"] == 1600
    assert runs["fast"]["images"] == 2400
    assert runs["example"]["epochs"][-1]["test_acc"] > 60
    for name in ("original_bf16", "default"):
        assert (runs[name]["images"], runs[name]["epochs"]) == (256, [])
        assert runs[name]["no_accuracy"]
    assert set(found["operations"]) == set(runs)
    assert all(name in text for name in runs)
    Image.open("out/peers.png").verify()
