"""The benchmark of a GPU, as far as a CPU can try it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, write_digits


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import bench_gpu

    return bench_gpu


def test_the_originals_speed_is_of_the_images_that_were_trained(bench, monkeypatch):
    from peers.competitors import Training

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 10))
    batches = [(torch.ones(size, 1, 2, 2), torch.zeros(size, dtype=torch.long)) for size in (4, 3)]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monkeypatch.setattr(bench, "original_network", lambda: network)
    monkeypatch.setattr(bench, "original", lambda *_: Training(lambda: batches, optimizer))
    monkeypatch.setattr(bench.time, "perf_counter", iter((0.0, 9.0, 10.0, 12.0)).__next__)
    assert bench.of_pictures(Path(), 1_000_000, torch.device("cpu")) == 3.5, "7 images, in 2 s of the second epoch"


def test_a_whole_run_that_was_cut_off_is_left_to_resume(bench, monkeypatch, place, capsys):
    run = Path("out/whole/run")
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    words = ["bench_gpu.py", "--data", "data", "--output", "out", "--device", "cpu", "--whole"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 2
    assert "train resume=out/whole/run" in capsys.readouterr().err
    assert not Path("out/gpu.json").exists()


def test_a_whole_run_that_failed_is_kept_and_ends_with_1(bench, monkeypatch, place):
    from bench_train import Pair

    monkeypatch.setattr(bench, "measure", lambda *_: [Pair(2.0, 2.0)])
    monkeypatch.setattr(bench, "of_pictures", lambda *_: 1.0)
    monkeypatch.setattr(bench, "whole", lambda *_: {"failed": "no digits"})
    words = ["--data", "data", "--output", "out", "--rounds", "1", "--device", "cpu", "--whole"]
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", *words])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 1
    assert json.loads(Path("out/gpu.json").read_text())["whole"] == {"failed": "no digits"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_of_it_once(place):
    write_digits(place / "data", 600, 100)
    words = [sys.executable, str(ROOT / "scripts/bench_gpu.py"), "--data", "data", "--output", "out", "--whole"]
    words += ["--device", "cpu", "--rounds", "1", "--steps", "2", "--images", "512", "data=sample"]
    words += ["data.train_limit=512", "schedule.initial_epochs=1", "schedule.extra_epochs=1", "model.channels=[4,8,8]"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(Path("out/gpu.json").read_text())
    assert all(len(measured) == 1 and measured[0]["loop"] > 0 for measured in found["loops"].values())
    assert found["original"][0] > 0
    assert found["whole"]["metrics"]["test_acc"] > 0
    assert {"run.json", "history.csv", "acc.png", "gpu.json"} <= {path.name for path in Path("out").iterdir()}
    assert not Path("out/whole").exists()
