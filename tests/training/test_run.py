"""Training through the command line: what a run leaves behind, and every ending of it."""

import json
import os
import re
import resource
import signal

import numpy as np
import pytest
import torch
from helpers import SMALL, assert_same_result, info, only_run, rows
from omegaconf import OmegaConf

from mnist_exp import load_model
from mnist_exp.parts.evaluate import PLAIN
from mnist_exp.parts.models import SmallCNN
from mnist_exp.parts.trainer import MEMORY_FORMATS, resolve_precision
from mnist_exp.runs.folder import HISTORY


def test_a_run_leaves_its_folder_as_documented(shell, place):
    done = shell("train", *SMALL)
    assert done.status == 0, done.err
    run = only_run(place)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", run.name)

    about = info(run)
    assert about["status"] == "finished"
    assert about["command"].endswith("-m mnist_exp train " + " ".join(SMALL))
    assert about["overrides"] == SMALL
    assert (about["seed"], about["device"], about["memory_format"]) == (42, "cpu", "channels_last")
    assert about["precision"] == resolve_precision("auto", torch.device("cpu"))
    assert about["dataset"] == {
        "name": "sample",
        "train": 128,
        "val": 500,
        "test": 1000,
        "md5": "b8ff62e444fa8656fdaf5b38040275c7",
        "classes": list("0123456789"),
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

    for name in ("last.pth", "sample_seed42_ckpt_epoch1.pth", "sample_seed42_swa_epoch2.pth"):
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


def test_test_is_scored_once_and_only_after_training(command, monkeypatch):
    import stopper

    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    monkeypatch.setattr(stopper.Spy, "scored", scored := [])
    assert command(*SMALL, "schedule.initial_epochs=3", "evaluate._target_=stopper.Spy").status == 0
    sizes = [size for size, _ in scored]
    assert sizes[:4] == [500] * 4  # one plain score an epoch, on validation
    assert all(shifts == PLAIN for _, shifts in scored[:4])
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
    assert info(place / "run")["status"] == "interrupted"  # the machine has failed, not the run
    assert not list(place.rglob("*unfinished*"))
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


def test_a_run_goes_on_in_another_memory_format(command, place, monkeypatch):
    """With a kernel that goes through memory as it lies, whatever the strides say."""
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    train = [*SMALL, "optimizer=adamw", "+optimizer.fused=true", "trainer.precision=fp32"]
    train += ["+logger.stop._target_=stopper.Logger"]
    assert command(*train, "trainer.memory_format=contiguous", "hydra.run.dir=whole").status == 0
    with monkeypatch.context() as patch:
        patch.setenv("STOP_IN_EPOCH", "1")
        assert command(*train, "hydra.run.dir=cut").status == 9
    assert command("train", "resume=cut", "trainer.memory_format=contiguous").status == 0
    losses = [info(place / run)["metrics"]["val_loss"] for run in ("whole", "cut")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("asked", ["auto", "contiguous"])
def test_weights_are_kept_in_the_memory_format(command, place, asked):
    assert command(*SMALL, f"trainer.memory_format={asked}", "hydra.run.dir=run").status == 0
    expected = "channels_last" if asked == "auto" else asked
    assert info(place / "run")["memory_format"] == expected
    saved = torch.load(place / "run" / "checkpoints" / "last.pth", weights_only=True)["model"]
    (filters,) = [tensor for tensor in saved.values() if tensor.ndim == 4 and tensor.shape[1] > 1][:1]
    assert filters.is_contiguous(memory_format=MEMORY_FORMATS[expected])
    assert load_model("run").members[0].trainer.memory_format == expected


@pytest.mark.full_data
@pytest.mark.timeout(900)
@pytest.mark.parametrize("preset", ["sprint", "fast"])
def test_the_presets_reach_99_percent(command, place, preset):
    root = os.environ.get("MNIST_FULL_DATA")
    if not root:
        pytest.skip("set MNIST_FULL_DATA to a folder that holds MNIST/raw")
    torch.set_num_threads(2)
    assert command(f"experiment={preset}", f"data.root={root}", "data.fallback=null").status == 0
    assert info(only_run(place))["metrics"]["test_acc"] >= 99.0


def test_labels_are_smoothed_where_asked(command, place):
    done = command("train", *SMALL, "augment.label_smoothing=1.5")
    assert done.status == 2
    assert "augment.label_smoothing is 1.5; it must be a number at least 0 and below 1" in done.err
    losses = []
    for smoothing in (0, 0.99):
        assert command(*SMALL, f"augment.label_smoothing={smoothing}", f"hydra.run.dir={smoothing}").status == 0
        losses.append(float(rows(place / str(smoothing))[-1]["train_loss"]))
    assert losses[0] != losses[1] > 2.3  # ln 10, the least where every target says nothing


def test_threads_of_one_run_are_not_those_of_the_next(command, place):
    torch.set_num_threads(2)
    assert command(*SMALL, "trainer.threads=1", "hydra.run.dir=one").status == 0
    assert torch.get_num_threads() == 2
    assert "1 threads" in info(place / "one")["device_name"]
    assert command(*SMALL, "trainer.threads=1", "optimizer.lr=nothing", "hydra.run.dir=two").status == 2
    assert torch.get_num_threads() == 2
