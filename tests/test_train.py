"""Training through the command line: what a run leaves behind, resuming, and every ending."""

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, info, only_run
from omegaconf import OmegaConf

from mnist_exp import evaluate
from mnist_exp.models import SmallCNN
from mnist_exp.run_folder import HISTORY

# a run with epochs of about a second, to be stopped in the middle of one
SLOW = [
    *("data=sample", "model.blocks=1", "model.channels=[8,16]", "model.ghost_batch_size=8", "data.batch_size=16"),
    *("data.train_limit=2000", "schedule.initial_epochs=3", "augment.mix.prob=0.5", "evaluate.tta_runs=2"),
]


def rows(run: Path) -> list[dict]:
    with (run / "history.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same_result(one: Path, other: Path) -> None:
    """Weights of every checkpoint, history and metrics are the same to the last bit; only times may differ."""
    states = [torch.load(run / "checkpoints" / "last.pth", weights_only=True) for run in (one, other)]
    for key in ("model", "average"):
        assert all(torch.equal(states[0][key][name], states[1][key][name]) for name in states[0][key])
    names = [sorted(p.name for p in (run / "checkpoints").glob("*epoch*")) for run in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        weights = [torch.load(run / "checkpoints" / name, weights_only=True)["model"] for run in (one, other)]
        assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    timeless = [
        [{k: v for k, v in r.items() if k not in ("seconds", "images_per_s")} for r in rows(x)] for x in (one, other)
    ]
    assert timeless[0] == timeless[1]
    metrics = [{k: v for k, v in info(run)["metrics"].items() if k != "images_per_s"} for run in (one, other)]
    assert metrics[0] == metrics[1]
    probs = [np.load(run / "results" / "predictions.npz")["probs"] for run in (one, other)]
    assert np.array_equal(*probs)


def test_a_run_leaves_its_folder_as_documented(shell, place):
    done = shell("train", *SMALL)
    assert done.status == 0, done.err
    run = only_run(place)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", run.name)

    about = info(run)
    assert about["status"] == "finished"
    assert about["command"].endswith("-m mnist_exp train " + " ".join(SMALL))
    assert about["overrides"] == SMALL
    assert (about["seed"], about["device"], about["precision"]) == (42, "cpu", "fp32")
    assert about["dataset"] == {
        "name": "sample",
        "train": 128,
        "val": 500,
        "test": 1000,
        "md5": "b8ff62e444fa8656fdaf5b38040275c7",
        "split_seed": 0,
    }
    assert about["versions"]["torch"] == torch.__version__
    assert about["parameters"] == 29_434
    assert set(about["metrics"]) >= {"val_acc", "val_loss", "test_acc", "test_acc_tta", "ensemble_acc", "images_per_s"}
    assert about["error"] is None
    assert about["seconds"] > 0

    history = rows(run)
    assert tuple(history[0]) == HISTORY
    assert [r["epoch"] for r in history] == ["1", "2"]
    assert [r["phase"] for r in history] == ["strong+swa", "light+swa"]
    best = max(history, key=lambda r: (float(r["val_acc"]), -float(r["val_loss"])))
    assert about["best_epoch"] == int(best["epoch"])
    assert about["metrics"]["val_acc"] == float(best["val_acc"])
    assert json.loads((run / "results" / "sample_seed42_history.json").read_text())[0]["epoch"] == 1

    predictions = np.load(run / "results" / "predictions.npz")
    assert predictions["probs"].dtype == np.float16
    assert predictions["probs"].shape == (1000, 10)
    hits = (predictions["predicted"] == predictions["labels"]).mean()
    assert about["metrics"]["test_acc"] == pytest.approx(100 * hits)
    for name in ("sample_seed42_train_loss.png", "sample_seed42_acc.png", "confusion.png", "mistakes.png"):
        assert (run / "results" / name).read_bytes().startswith(b"\x89PNG")

    for name in ("last.pth", "previous.pth", "sample_seed42_ckpt_epoch1.pth", "sample_seed42_swa_epoch2.pth"):
        model = SmallCNN()
        model.load_state_dict(torch.load(run / "checkpoints" / name, weights_only=True)["model"])
    assert OmegaConf.load(run / ".hydra" / "config.yaml").data.train_limit == 128
    assert {p.name for p in (run / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}

    last = done.out.strip().splitlines()[-1]
    assert last == "data     sample: 128 train, 500 val, 1,000 test, MD5 b8ff62e444fa8656fdaf5b38040275c7"
    assert last in (run / "train.log").read_text()
    assert "\x1b" not in done.out  # plain lines where there is no terminal


def test_train_is_the_default_command_and_a_seed_repeats_a_run(command, place):
    for folder, extra in (("a", []), ("b", []), ("c", ["seed=43"])):
        assert command(*SMALL, *extra, f"hydra.run.dir={folder}").status == 0
    assert_same_result(place / "a", place / "b")
    a, c = (torch.load(place / x / "checkpoints" / "last.pth", weights_only=True)["model"] for x in "ac")
    assert not torch.equal(a["head.weight"], c["head.weight"])
    digests = [info(place / x)["dataset"]["md5"] for x in "ac"]
    assert digests[0] == digests[1]


def start(place: Path, folder: str, *extra: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "mnist_exp", "train", *SLOW, f"hydra.run.dir={folder}", *extra]
    return subprocess.Popen(words, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_epochs(place: Path, folder: str, epochs: int) -> None:
    history = place / folder / "history.csv"
    for _ in range(1200):
        if history.exists() and len(history.read_text().splitlines()) > epochs:
            return
        time.sleep(0.05)
    raise AssertionError(f"{history} did not reach {epochs} epochs")


def test_killed_and_interrupted_runs_end_as_the_uninterrupted_one(place, shell):
    whole = start(place, "whole")
    killed = start(place, "killed")
    wait_for_epochs(place, "killed", 2)
    time.sleep(0.2)
    killed.kill()
    killed.wait()
    assert info(place / "killed")["status"] == "running"
    assert shell("train", f"resume={place / 'killed'}").status == 0

    stopped = start(place, "stopped")
    for epochs, number in ((1, signal.SIGINT), (3, signal.SIGTERM)):
        wait_for_epochs(place, "stopped", epochs)
        time.sleep(0.3)
        stopped.send_signal(number)
        assert stopped.wait(60) == 130
        about = info(place / "stopped")
        assert about["status"] == "interrupted"
        state = torch.load(place / "stopped" / "checkpoints" / "last.pth", weights_only=True)
        assert state["step"] > 0, "stopped at the end of an epoch, not in the middle"
        assert state["epoch"] == epochs + 1
        words = [sys.executable, "-m", "mnist_exp", "train", "resume=stopped"]
        stopped = subprocess.Popen(words, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert stopped.wait(120) == 0, stopped.stderr.read()
    assert whole.wait(120) == 0
    assert_same_result(place / "whole", place / "killed")
    assert_same_result(place / "whole", place / "stopped")
    assert info(place / "stopped")["resumed"] == 2
    assert list(place.glob("outputs/runs/*")) == []


@pytest.fixture
def interrupted(command, monkeypatch) -> Path:
    """A run of four epochs that was killed after its third."""
    whole = ["hydra.run.dir=whole", *SMALL, "schedule.initial_epochs=3"]
    assert command(*whole).status == 0
    from mnist_exp.trainer import Trainer

    report = Trainer._report

    def killed(row, epochs, better):
        report(row, epochs, better)
        if row["epoch"] == 3:
            raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_report", staticmethod(killed))
        assert command(*SMALL, "hydra.run.dir=cut", "schedule.initial_epochs=3").status == 9
    return Path("cut")


@pytest.mark.parametrize("damage", ["torn", "foreign", "gone"])
def test_a_bad_checkpoint_falls_back_to_the_one_before(command, interrupted, damage):
    last = interrupted / "checkpoints" / "last.pth"
    if damage == "torn":
        last.write_bytes(last.read_bytes()[:1000])
    elif damage == "foreign":
        torch.save({"weights": torch.ones(3)}, last)
    else:
        last.unlink()
    done = command("train", f"resume={interrupted}")
    assert done.status == 0, done.err
    if damage != "gone":
        assert "last.pth" in done.out
        assert "going on from previous.pth (epoch 3)" in done.out
    assert_same_result(Path("whole"), interrupted)


def test_two_bad_checkpoints_start_over_saying_so(command, interrupted):
    for name in ("last.pth", "previous.pth"):
        (interrupted / "checkpoints" / name).write_bytes(b"nonsense")
    done = command("train", f"resume={interrupted}")
    assert done.status == 0
    assert "starting from the first epoch" in done.out
    assert_same_result(Path("whole"), interrupted)


def test_a_resumed_run_keeps_its_own_config(command, interrupted):
    done = command("train", f"resume={interrupted}", "optimizer.lr=0.5")
    assert done.status == 2
    assert "optimizer.lr cannot change" in done.err
    assert info(interrupted)["status"] == "interrupted"
    assert command("train", f"resume={interrupted}", "tags=[again]").status == 0


def test_a_finished_run_is_trained_further_in_a_new_one_from_resume_lr(command, place):
    assert command(*SMALL, "hydra.run.dir=first").status == 0
    before = (place / "first" / "run.json").read_text()
    done = command("train", "resume=first")
    assert done.status == 2
    assert "schedule.extra_epochs" in done.err
    done = command("train", "resume=first", "schedule.extra_epochs=3", "schedule.resume_lr=1e-4")
    assert done.status == 0, done.err
    assert (place / "first" / "run.json").read_text() == before
    run = only_run(place)
    assert info(run)["warm_start"] == str(place / "first")
    assert float(rows(run)[0]["lr"]) == pytest.approx(1e-4)
    assert len(rows(run)) == 3
    first, second = float(rows(place / "first")[-1]["train_loss"]), float(rows(run)[0]["train_loss"])
    assert second < first + 0.1  # it did not start from random weights
    assert float(rows(place / "first")[0]["train_loss"]) > second


def test_an_interrupted_warm_restart_goes_on_as_one(command, place, monkeypatch):
    from mnist_exp.trainer import Trainer

    assert command(*SMALL, "hydra.run.dir=first").status == 0
    again = ["train", "resume=first", "schedule.extra_epochs=4", "schedule.resume_lr=1e-3"]
    assert command(*again, "hydra.run.dir=whole").status == 0
    report = Trainer._report
    for name, epoch in (("early", 0), ("late", 2)):

        def killed(row, epochs, better, epoch=epoch):
            report(row, epochs, better)
            if row["epoch"] == epoch:
                raise SystemExit(9)

        def killed_at_once(*arguments, **options):
            raise SystemExit(9)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_report", staticmethod(killed))
            if epoch == 0:
                patch.setattr(Trainer, "fit", killed_at_once)
            assert command(*again, f"hydra.run.dir={name}").status == 9
        assert command("train", f"resume={name}").status == 0
        assert_same_result(place / "whole", place / name)


def test_a_signal_in_the_last_step_of_an_epoch_can_be_resumed(command, place, monkeypatch):
    from mnist_exp import trainer

    assert command(*SMALL, "hydra.run.dir=whole").status == 0
    step, calls = trainer.train_step, []

    def interrupting(*arguments):
        step(*arguments)
        calls.append(1)
        if len(calls) == 2:  # the last step of the first epoch
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_step", interrupting)
        assert command(*SMALL, "hydra.run.dir=cut").status == 130
    assert command("train", "resume=cut").status == 0
    assert_same_result(place / "whole", place / "cut")


def test_a_checkpoint_of_another_model_is_not_taken(command, interrupted, place):
    assert command(*SMALL, "model.channels=[4,8,8]", "hydra.run.dir=other").status == 0
    (place / "other" / "checkpoints" / "last.pth").replace(interrupted / "checkpoints" / "last.pth")
    done = command("train", f"resume={interrupted}")
    assert done.status == 0, done.err
    assert "another model" in done.out
    assert_same_result(Path("whole"), interrupted)


def test_a_run_is_written_by_one_process_at_a_time(command, shell, interrupted):
    from mnist_exp.run_folder import RunFolder

    run = RunFolder.open(interrupted)
    run.lock()
    done = shell("train", f"resume={interrupted}")
    assert done.status == 2
    assert "being written by another process" in done.err
    run.unlock()
    assert command("train", f"resume={interrupted}").status == 0


def test_test_is_scored_once_and_only_after_training(command, monkeypatch):
    scored = []
    original = evaluate.Evaluator.probabilities

    def spy(self, model, split, *rest):
        scored.append((len(split), tuple(rest[1]) if len(rest) > 1 else evaluate.PLAIN))
        return original(self, model, split, *rest)

    monkeypatch.setattr(evaluate.Evaluator, "probabilities", spy)
    assert command(*SMALL, "schedule.initial_epochs=3").status == 0
    sizes = [size for size, _ in scored]
    assert sizes[:4] == [500] * 4  # one plain score an epoch, on validation
    assert all(shifts == evaluate.PLAIN for _, shifts in scored[:4])
    assert sizes[4:].count(1000) == 5  # three members, the best one with TTA, the average: each once
    assert len(set(scored[4:])) == 4


def test_without_validation_nothing_is_selected(command, place):
    assert command(*SMALL, "data.val_size=0").status == 0
    run = only_run(place)
    assert info(run)["best_epoch"] is None
    assert "val_acc" not in info(run)["metrics"]
    assert "ensemble_acc" not in info(run)["metrics"]
    assert rows(run)[0]["val_acc"] == ""
    assert not list((run / "checkpoints").glob("*ckpt*"))


def test_top_k_keeps_the_best_by_their_own_score(command, place):
    assert command(*SMALL, "schedule.initial_epochs=5", "evaluate.top_k=2", "optimizer.lr=0.05").status == 0
    run = only_run(place)
    ranked = sorted(rows(run), key=lambda r: (-float(r["val_acc"]), float(r["val_loss"])))
    kept = {int(re.search(r"epoch(\d+)", p.name)[1]) for p in (run / "checkpoints").glob("*ckpt*")}
    assert kept == {int(r["epoch"]) for r in ranked[:2]}
    assert info(run)["best_epoch"] == int(ranked[0]["epoch"])


def test_max_steps_ends_early_and_still_evaluates(command, place):
    assert command(*SMALL, "trainer.max_steps=3", "schedule.initial_epochs=4").status == 0
    run = only_run(place)
    assert len(rows(run)) == 2
    assert torch.load(run / "checkpoints" / "last.pth", weights_only=True)["total_steps"] == 3
    assert "test_acc" in info(run)["metrics"]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(command, place):
    arguments = [*SMALL, "optimizer=sgd", "schedule=one_cycle", "schedule.initial_epochs=9", "optimizer.lr=1e12"]
    done = command(*arguments, "schedule.pct_start=0.9", "schedule.div_factor=1e12", "hydra.run.dir=run")
    assert done.status == 1
    assert "the loss is not finite any more in epoch" in done.err
    assert "optimizer.lr" in done.err
    about = info(place / "run")
    assert about["status"] == "failed"
    assert "not finite" in about["error"]
    state = torch.load(place / "run" / "checkpoints" / "last.pth", weights_only=True)
    assert all(v.isfinite().all() for v in state["model"].values())
    assert len(rows(place / "run")) == state["epoch"] - 1 == about["epoch"]


def test_a_full_disk_is_one_message_and_the_run_goes_on_later(shell, place):
    def no_large_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = shell("train", *SMALL, "hydra.run.dir=run", preexec_fn=no_large_files)
    assert done.status == 1
    assert "the disk is full" in done.err
    assert "resume=" in done.err
    assert "Traceback" not in done.err
    assert info(place / "run")["status"] == "failed"
    assert not list(place.rglob("*.tmp"))
    assert shell("train", "resume=run").status == 0
    assert info(place / "run")["status"] == "finished"


def test_an_existing_run_is_never_touched(command, place):
    assert command(*SMALL, "hydra.run.dir=run").status == 0
    before = {p: p.read_bytes() for p in (place / "run").rglob("*") if p.is_file()}
    done = command(*SMALL, "hydra.run.dir=run", "seed=1")
    assert done.status == 2
    assert "already holds a run" in done.err
    assert {p: p.read_bytes() for p in (place / "run").rglob("*") if p.is_file()} == before


def test_outputs_that_cannot_be_written_are_named(command, place):
    (place / "file").write_text("")
    done = command(*SMALL, "paths.outputs=file")
    assert done.status == 1
    assert str(place / "file") in done.err or "file/runs" in done.err
    assert "paths.outputs" in done.err


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_loggers_get_every_epoch(command, place, name):
    assert command(*SMALL, f"logger={name}", "hydra.run.dir=run").status == 0
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(place / "run" / "tensorboard"))
        events.Reload()
        logged = [e.value for e in events.Scalars("val_acc")]
    else:
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{place}/outputs/mlflow.db")
        (run,) = client.search_runs([client.get_experiment_by_name("debug").experiment_id])
        assert run.info.status == "FINISHED"
        assert run.data.params["data.train_limit"] == "128"
        logged = [m.value for m in client.get_metric_history(run.info.run_id, "val_acc")]
    assert logged[:2] == pytest.approx([float(r["val_acc"]) for r in rows(place / "run")])


def test_a_data_set_of_ones_own_goes_through_a_loader(command, place):
    from PIL import Image

    draws = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 5)):
        for label in range(3):
            folder = place / "mine" / part / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 80, (28, 28), dtype=np.uint8)
                pixels[:, 8 * label : 8 * label + 8] = 255
                Image.fromarray(pixels).save(folder / f"{number}.png")
    arguments = ["data=custom", "data.root=mine", "data.val_size=9", "data.num_workers=1", "data.batch_size=17"]
    more = ["model=small_cnn", "model.num_classes=3", "schedule=cosine", "schedule.initial_epochs=4"]
    done = command(*arguments, *more, "optimizer=adamw", "augment=none", "hydra.run.dir=run")
    assert done.status == 0, done.err
    about = info(place / "run")
    assert about["dataset"]["train"] == 51
    assert about["metrics"]["test_acc"] > 60
    assert command("data=custom", "data.root=nowhere").status == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_on_a_gpu(command, place, precision):
    assert command(*SMALL, "trainer.device=cuda", f"trainer.precision={precision}").status == 0
    assert info(only_run(place))["precision"] == precision


@pytest.mark.full_data
@pytest.mark.timeout(900)
def test_the_fast_preset_reaches_99_percent(command, place, monkeypatch):
    root = os.environ.get("MNIST_FULL_DATA")
    if not root:
        pytest.skip("set MNIST_FULL_DATA to a folder that holds MNIST/raw")
    torch.set_num_threads(2)
    assert command("experiment=fast", f"data.root={root}", "data.fallback=null").status == 0
    assert info(only_run(place))["metrics"]["test_acc"] >= 99.0
