"""The benchmark of growth: its exponents, and all of it once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from PIL import Image

SCRIPTS = ROOT / "scripts"


def test_exponents_are_those_of_the_law(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from bench_growth import exponents

    assert exponents({n: 3 * n**1.5 for n in (10, 100, 400)}) == pytest.approx((1.5, 1.5))
    assert exponents({1: 5.0, 2: 5.0, 8: 40.0}) == pytest.approx((15 / 14, 1.5))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_growth_is_measured_once(place):
    words = [sys.executable, str(SCRIPTS / "bench_growth.py"), "--output", "out", "--fixed", "1200"]
    words += ["--images", "1200", "2400", "--widths", "2", "--batches", "64"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads(Path("out/growth.json").read_text())["runs"]
    asked = [("images", 1200), ("images", 2400), ("width", 2), ("batch", 64)]
    assert [(row["question"], row["value"]) for row in runs] == asked
    assert all(row["seconds"] > 0 and row["memory_mib"] > 100 for row in runs)
    trained = [round(row["seconds"] * row["images_per_s"]) for row in runs]
    assert trained == [1200, 2400, 1200, 1200]
    assert done.stdout.count("exponent") == 3
    Image.open("out/growth.png").verify()
