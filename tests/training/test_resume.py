"""Runs that were cut off, and go on as if they had not been."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import stopper
import torch
from helpers import ROOT, SLOW, SMALL, assert_same_result, info, only_run, rows, start, wait_for_epochs

from mnist_exp.runs.folder import RunFolder
from mnist_exp.runs.record import Record


def test_killed_and_interrupted_runs_end_as_the_uninterrupted_one(place, shell):
    whole = start(place, "train", *SLOW, "hydra.run.dir=whole")
    killed = start(place, "train", *SLOW, "hydra.run.dir=killed")
    wait_for_epochs(place / "killed", 2)
    time.sleep(0.2)
    killed.kill()
    killed.wait()
    assert info(place / "killed")["status"] == "running"
    assert shell("train", f"resume={place / 'killed'}").status == 0

    stopped = start(place, "train", *SLOW, "hydra.run.dir=stopped")
    for epochs, number in ((1, signal.SIGINT), (3, signal.SIGTERM)):
        wait_for_epochs(place / "stopped", epochs)
        time.sleep(0.3)
        stopped.send_signal(number)
        assert stopped.wait(60) == 130
        about = info(place / "stopped")
        assert about["status"] == "interrupted"
        state = torch.load(place / "stopped" / "checkpoints" / "last.pth", weights_only=True)
        assert state["step"] > 0, "stopped at the end of an epoch, not in the middle"
        assert state["epoch"] == epochs + 1
        stopped = start(place, "train", "resume=stopped")
    assert stopped.wait(120) == 0, stopped.stderr.read()
    assert whole.wait(120) == 0
    assert_same_result(place / "whole", place / "killed")
    assert_same_result(place / "whole", place / "stopped")
    assert info(place / "stopped")["resumed"] == 2
    assert list(place.glob("outputs/runs/*")) == []


@pytest.fixture
def interrupted(command, monkeypatch) -> Path:
    """A run of four epochs that was ended after its third, beside one that was not."""
    arguments = [*SMALL, "schedule.initial_epochs=3", "+logger.stop._target_=stopper.Logger"]
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    assert command(*arguments, "hydra.run.dir=whole").status == 0
    with monkeypatch.context() as patch:
        patch.setenv("STOP_IN_EPOCH", "3")
        assert command(*arguments, "hydra.run.dir=cut").status == 9
    return Path("cut")


@pytest.mark.parametrize("damage", ["torn", "zeroed", "foreign", "gone", "misshapen", "pipe"])
def test_a_bad_checkpoint_falls_back_to_the_one_before(command, interrupted, damage):
    last = interrupted / "checkpoints" / "last.pth"
    if damage == "torn":
        last.write_bytes(last.read_bytes()[:1000])
    elif damage == "zeroed":
        content = last.read_bytes()
        last.write_bytes(content[:20_000] + bytes(512) + content[20_512:])
        torch.load(last, weights_only=True)  # torch does not notice
    elif damage == "foreign":
        torch.save({"weights": torch.ones(3)}, last)
    elif damage == "misshapen":
        saved = torch.load(last, weights_only=True)
        saved["optimizer"]["base"]["state"][0]["momentum_buffer"] = torch.ones(3)
        torch.save(saved, last)
    else:
        last.unlink()
        if damage == "pipe":
            os.mkfifo(last)
    done = command("train", f"resume={interrupted}")
    assert done.status == 0, done.err
    assert "last.pth" in done.out
    assert "going on from previous.pth (epoch 3)" in done.out
    assert_same_result(Path("whole"), interrupted)


def test_short_epochs_share_a_checkpoint_and_a_kill_costs_them(command, place, monkeypatch):
    """The clock goes on by 4 seconds an epoch, and a checkpoint is written every 10."""
    arguments = [*SMALL, "schedule.initial_epochs=7", "+logger.stop._target_=stopper.Logger"]
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    monkeypatch.setattr("mnist_exp.training.loop.EVERY", 10)
    assert command(*arguments, "hydra.run.dir=whole").status == 0

    def monotonic() -> float:
        history = Path("cut/history.csv")
        return 4.0 * len(history.read_text().splitlines()[1:]) if history.exists() else 0.0

    with monkeypatch.context() as patch:
        patch.setattr("mnist_exp.training.loop.time", SimpleNamespace(monotonic=monotonic))
        patch.setenv("STOP_IN_EPOCH", "7")
        assert command(*arguments, "hydra.run.dir=cut").status == 9
    saved = torch.load("cut/checkpoints/last.pth", weights_only=True)
    assert saved["epoch"] == 7, "written after the third epoch and after the sixth"
    assert len(rows(Path("cut"))) == 7
    done = command("train", "resume=cut")
    assert "resuming in epoch 7" in done.out
    assert_same_result(Path("whole"), Path("cut"))


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
    done = command("train", "resume=first", "schedule.extra_epochs=3", "model.channels=[2,2,2]")
    assert done.status == 2
    assert "do not fit" in done.err
    assert "first/.hydra/config.yaml" in done.err
    done = command("train", "resume=first", "schedule.extra_epochs=3", "schedule.resume_lr=1e-4")
    assert done.status == 0, done.err
    assert (place / "first" / "run.json").read_text() == before
    run = only_run(place)
    assert info(run)["warm_start"] == str(place / "first")
    assert info(run)["epochs_before"] == len(rows(place / "first")), "whose random numbers it does not draw again"
    assert float(rows(run)[0]["lr"]) == pytest.approx(1e-4)
    assert len(rows(run)) == 3
    first, second = float(rows(place / "first")[-1]["train_loss"]), float(rows(run)[0]["train_loss"])
    assert second < first + 0.1  # it did not start from random weights
    assert float(rows(place / "first")[0]["train_loss"]) > second


def test_weights_are_not_told_by_images_that_they_have_seen(command, place):
    assert command(*SMALL, "hydra.run.dir=first").status == 0
    further = ["train", "resume=first", "schedule.extra_epochs=1"]
    for change, told in (
        ("data.split_seed=1", "split_seed 0, now 1"),
        ("data.val_size=400", "val 500, now 400"),
        ("data.test_size=900", "test 1,000, now 900"),
    ):
        done = command(*further, change, "hydra.run.dir=further")
        assert done.status == 2
        assert told in done.err
        assert not Path("further").exists()
    del (about := info(place / "first"))["dataset"]["split_seed"]  # as an older version, which had none
    (place / "first" / "run.json").write_text(json.dumps(about))
    assert command(*further, "data.split_seed=1", "hydra.run.dir=further").status == 2
    done = command(*further, "data.val_size=0", "hydra.run.dir=further")
    assert done.status == 0, done.err


@pytest.mark.parametrize("change", ["tags=again", "tags=3", "paths.figures=[gif]", "task_name='${oc.env:HOME}'"])
def test_what_is_typed_on_resuming_is_checked(command, interrupted, change):
    before = {file: file.read_bytes() for file in interrupted.rglob("*") if file.suffix in (".json", ".yaml")}
    done = command("train", f"resume={interrupted}", change)
    assert done.status == 2, done.out
    assert change.partition("=")[0] in done.err
    assert "damaged" not in done.err
    assert all(file.read_bytes() == content for file, content in before.items())


def test_an_interrupted_warm_restart_goes_on_as_one(command, place, monkeypatch):
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    assert command(*SMALL, "hydra.run.dir=first", "+logger.stop._target_=stopper.Logger").status == 0
    again = ["train", "resume=first", "schedule.extra_epochs=4", "schedule.resume_lr=1e-3"]
    assert command(*again, "hydra.run.dir=whole").status == 0
    for name, epoch in (("early", "0"), ("late", "2")):
        with monkeypatch.context() as patch:
            patch.setenv("STOP_IN_EPOCH", epoch)
            assert command(*again, f"hydra.run.dir={name}").status == 9
        assert command("train", f"resume={name}").status == 0
        assert_same_result(place / "whole", place / name)


def test_a_warm_restart_goes_on_without_the_run_it_came_from(command, place, monkeypatch):
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    monkeypatch.setenv("STOP_IN_EPOCH", "3")
    assert command(*SMALL, "hydra.run.dir=first", "+logger.stop._target_=stopper.Logger").status == 0
    assert command("train", "resume=first", "schedule.extra_epochs=4", "hydra.run.dir=further").status == 9
    shutil.rmtree(place / "first")
    monkeypatch.delenv("STOP_IN_EPOCH")
    assert command("train", "resume=further").status == 0
    assert len(rows(place / "further")) == 4


def test_a_run_killed_between_its_checkpoint_and_run_json_tells_all_epochs(command, interrupted):
    about = info(interrupted)
    (interrupted / "run.json").write_text(json.dumps({**about, "epoch": 2, "metrics": {}, "best_epoch": None}))
    assert command("train", f"resume={interrupted}", "evaluate.test=false").status == 2
    assert command("train", f"resume={interrupted}").status == 0
    assert_same_result(Path("whole"), interrupted)
    assert info(interrupted)["epoch"] == 4


def test_a_signal_in_the_last_step_of_an_epoch_can_be_resumed(command, place, monkeypatch):
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    arguments = [*SMALL, "model._target_=stopper.Net"]
    assert command(*arguments, "hydra.run.dir=whole").status == 0
    with monkeypatch.context() as patch:
        patch.setenv("INTERRUPT_IN_STEP", "2")  # the last of the first epoch
        done = command(*arguments, "hydra.run.dir=cut")
        assert (done.status, "failed" in done.out + done.err) == (130, False)
    assert command("train", "resume=cut").status == 0
    assert_same_result(place / "whole", place / "cut")


def test_a_run_that_goes_on_at_another_commit_names_both(command, interrupted, monkeypatch):
    from mnist_exp.runs import record

    begun = info(interrupted)["git_sha"]
    monkeypatch.setattr(record, "_git_sha", lambda: "f" * 40)
    assert command("train", f"resume={interrupted}").status == 0
    assert info(interrupted)["git_sha"] == ("f" * 40 if begun is None else f"{begun}, {'f' * 40}")
    assert record._joined("a, b", "a") == "b, a"
    assert record._joined("a" * 1000, "b").endswith("a, b")
    assert len(record._joined("a" * 1000, "b")) == 800
    assert (record._joined(None, "a"), record._joined("a", None), record._joined(None, None)) == ("a", "a", None)


def test_what_may_change_on_resuming_does(command, interrupted):
    arguments = ["logger=none", "tags=[again]", "trainer.max_steps=7"]
    done = command("train", f"resume={interrupted}", *arguments)
    assert done.status == 0, done.err
    assert len(rows(interrupted)) == 4
    assert torch.load(interrupted / "checkpoints" / "last.pth", weights_only=True)["total_steps"] == 7


def test_a_checkpoint_of_another_model_is_not_taken(command, interrupted, place):
    assert command(*SMALL, "model.channels=[4,8,8]", "hydra.run.dir=other").status == 0
    (place / "other" / "checkpoints" / "last.pth").replace(interrupted / "checkpoints" / "last.pth")
    done = command("train", f"resume={interrupted}")
    assert done.status == 0, done.err
    assert "another model" in done.out
    assert_same_result(Path("whole"), interrupted)


def test_a_run_is_written_by_one_process_at_a_time(command, shell, interrupted, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "tests"))))
    from mnist_exp.runs.folder import RunFolder

    run = RunFolder.open(interrupted)
    run.lock()
    done = shell("train", f"resume={interrupted}")
    assert done.status == 2
    assert "being written by another process" in done.err
    run.unlock()
    assert command("train", f"resume={interrupted}").status == 0


@pytest.mark.parametrize("older", [False, True])
def test_an_epoch_cut_off_on_another_device_starts_anew(command, place, monkeypatch, older):
    """A checkpoint as a GPU in fp16 leaves it in the middle of an epoch."""
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    arguments = [*SMALL, "model._target_=stopper.Net", "schedule.initial_epochs=2", "trainer.precision=fp32"]
    assert command(*arguments, "hydra.run.dir=whole").status == 0
    with monkeypatch.context() as patch:
        patch.setenv("INTERRUPT_IN_STEP", "3")  # the first of two in the second epoch
        assert command(*arguments, "hydra.run.dir=cut").status == 130
    last = place / "cut" / "checkpoints" / "last.pth"
    state = torch.load(last, weights_only=True)
    assert (state["epoch"], state["step"], state["device"], state["precision"]) == (2, 1, "cpu", "fp32")
    scaler = torch.amp.GradScaler("cpu", enabled=True).state_dict()
    state |= {"device": "cuda", "precision": "fp16", "scaler": scaler}
    state["rng"]["device"] = torch.zeros(16, dtype=torch.uint8)
    if older:
        del state["device"], state["precision"], state["memory_format"]
    torch.save(state, last)
    done = command("train", "resume=cut")
    assert done.status == 0, done.err
    there = "another device" if older else "cuda in fp16 in channels_last"
    assert f"was written in mid-epoch on {there}, and this is cpu in fp32 in channels_last" in done.out
    assert "going on from previous.pth (epoch 2)" in done.out
    assert_same_result(place / "whole", place / "cut")


@pytest.mark.parametrize("units", [True, False])
def test_a_run_goes_on_in_its_own_precision_on_another_cpu(command, place, monkeypatch, units):
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": units})
    arguments = [*SMALL, "model._target_=stopper.Net", "schedule.initial_epochs=2"]
    assert command(*arguments, "hydra.run.dir=whole").status == 0
    with monkeypatch.context() as patch:
        patch.setenv("INTERRUPT_IN_STEP", "3")
        assert command(*arguments, "hydra.run.dir=cut").status == 130
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": not units})
    assert command("train", "resume=cut").status == 0
    assert info(place / "cut")["precision"] == ("bf16" if units else "fp32")
    assert_same_result(place / "whole", place / "cut")


def test_no_epoch_is_lost_to_another_device(command, place, monkeypatch):
    """An older version left two checkpoints of the same epoch's middle."""
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    monkeypatch.setenv("INTERRUPT_IN_STEP", "3")
    arguments = [*SMALL, "model._target_=stopper.Net", "trainer.precision=fp32"]
    assert command(*arguments, "hydra.run.dir=cut").status == 130
    last = place / "cut" / "checkpoints" / "last.pth"
    torch.save(torch.load(last, weights_only=True) | {"precision": "bf16"}, last)
    shutil.copy(last, last.with_name("previous.pth"))
    done = command("train", "resume=cut")
    assert done.status == 2
    assert "on cpu in bf16" in done.err
    assert len(rows(place / "cut")) == 1


def test_the_checkpoint_before_is_the_start_of_an_epoch(command, place, monkeypatch):
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    arguments = [*SMALL, "data.train_limit=256", "model._target_=stopper.Net"]
    assert command(*arguments, "hydra.run.dir=whole").status == 0
    for number, step in enumerate((6, 1)):  # of four steps an epoch: after the second of the second, then one more
        monkeypatch.setenv("INTERRUPT_IN_STEP", str(step))
        job = ["train", "resume=cut"] if number else [*arguments, "hydra.run.dir=cut"]
        assert command(*job).status == 130
        found = [
            torch.load(place / "cut" / "checkpoints" / f"{name}.pth", weights_only=True)
            for name in ("previous", "last")
        ]
        assert [(state["epoch"], state["step"]) for state in found] == [(2, 0), (2, 2 + number)]
    monkeypatch.delenv("INTERRUPT_IN_STEP")
    (place / "cut" / "checkpoints" / "last.pth").write_bytes(b"torn")
    assert command("train", "resume=cut").status == 0
    assert_same_result(place / "whole", place / "cut")


def test_a_run_made_to_end_early_is_no_repetition_of_whole_ones(command, place, monkeypatch):
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    arguments = [*SMALL, "model._target_=stopper.Net", "schedule.initial_epochs=3"]
    for seed in (1, 2):
        assert command(*arguments, f"seed={seed}", f"hydra.run.dir=runs/{seed}").status == 0
    with monkeypatch.context() as patch:
        patch.setenv("INTERRUPT_IN_STEP", "3")  # the first of two in the second epoch
        assert command(*arguments, "seed=3", "hydra.run.dir=runs/3").status == 130
    before = {
        file: file.read_bytes() for file in (place / "runs" / "3").rglob("*") if file.suffix in (".json", ".yaml")
    }
    done = command("train", "resume=runs/3", "trainer.max_steps=2")
    assert done.status == 2
    assert "trainer.max_steps is 2; it must be above 3, the steps taken before, or null" in done.err
    assert all(file.read_bytes() == content for file, content in before.items())
    assert command("train", "resume=runs/3", "trainer.max_steps=5").status == 0
    about = info(place / "runs" / "3")
    assert (about["epoch"], about["epochs"]) == (3, 3)
    assert torch.load(place / "runs" / "3" / "checkpoints" / "last.pth", weights_only=True)["total_steps"] == 5
    recipes = [info(place / "runs" / seed)["recipe"]["digest"] for seed in "123"]
    assert recipes[0] == recipes[1] != recipes[2]
    done = command("compare", "runs", "--columns", "name,trainer.max_steps", "--csv", "runs.csv")
    assert done.status == 0, done.err
    limits = pd.read_csv("runs.csv", keep_default_na=False)["trainer.max_steps"]
    assert sorted(limits) == ["5.0", "null", "null"]


def test_a_signal_in_the_last_step_of_all_can_be_resumed(command, place, monkeypatch):
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    arguments = [*SMALL, "model._target_=stopper.Net", "trainer.max_steps=3"]  # in the middle of the second epoch
    assert command(*arguments, "hydra.run.dir=whole").status == 0
    with monkeypatch.context() as patch:
        patch.setenv("INTERRUPT_IN_STEP", "3")
        assert command(*arguments, "hydra.run.dir=cut").status == 130
    before = (place / "cut" / "run.json").read_bytes()
    done = command("train", "resume=cut", "trainer.max_steps=null")
    assert done.status == 2
    assert "trainer.max_steps is None; it must be 3, at which its last epoch has ended before its time" in done.err
    assert (place / "cut" / "run.json").read_bytes() == before
    done = command("train", "resume=cut")
    assert done.status == 0, done.err
    assert_same_result(place / "whole", place / "cut")


@pytest.mark.parametrize("lost", [False, True])
def test_a_run_that_was_cut_off_while_it_scored_test_has_scored_it(command, place, monkeypatch, lost):
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    with monkeypatch.context() as patch:
        patch.setattr(stopper.Ender, "scored", 0)
        patch.setenv("STOP_IN_TEST", "2")
        assert command(*SMALL, "evaluate._target_=stopper.Ender", "hydra.run.dir=cut").status == 9
    assert info(place / "cut")["test_scored"] == 1
    assert "test_acc" not in info(place / "cut")["metrics"]
    if lost:
        (place / "cut" / "history.csv").unlink()
    done = command("train", "resume=cut")
    assert done.status == 0, done.err
    about = info(place / "cut")
    assert (about["test_scored"], about["epoch"]) == (2, 2)
    assert about["metrics"]["images_per_s"] > 0


def test_where_a_run_stands_is_logged_only_if_it_is_new(place):
    logged: list[int] = []
    logger = SimpleNamespace(log=lambda metrics, epoch=None: logged.append(epoch))
    about = {"prefix": "p", "status": "running", "overrides": [], "metrics": {}, "epoch": 3, "best_epoch": 3}
    folder = RunFolder.create(place / "run", about, {})
    lines = [f"{epoch},light,0.1,1,1,1,1,1,{100 * epoch}" for epoch in (1, 2, 3, 4)]
    columns = "epoch,phase,lr,train_loss,train_acc,val_loss,val_acc,seconds,images_per_s"
    folder.history_file.write_text("\n".join([columns, *lines, ""]))
    rows, record = folder.history(), Record(folder, [logger], 0.0)
    record.stand_at(rows[1], {"epoch": 1, "val_acc": 50.0, "val_loss": 1.0})
    assert (folder.info["epoch"], folder.info["best_epoch"], logged) == (2, 1, [])
    assert folder.info["metrics"]["images_per_s"] == 150, "of epochs 1 and 2"
    record.stand_at(rows[3], {"epoch": 1, "val_acc": 50.0, "val_loss": 1.0})
    assert (folder.info["epoch"], logged) == (4, [4])
    record.stand_at(None, None)
    assert (folder.info["epoch"], folder.info["best_epoch"], folder.info["metrics"], logged) == (0, None, {}, [4])
    folder.unlock()


def test_an_optimizer_that_counts_among_its_settings_goes_on(command, place, monkeypatch):
    monkeypatch.setenv("MNIST_EXP_ALLOW", "stopper.*")
    arguments = [*SMALL, "model._target_=stopper.Net", "optimizer.base._target_=stopper.Counting"]
    assert command(*arguments, "hydra.run.dir=whole").status == 0
    with monkeypatch.context() as patch:
        patch.setenv("INTERRUPT_IN_STEP", "3")
        assert command(*arguments, "hydra.run.dir=cut").status == 130
    done = command("train", "resume=cut")
    assert done.status == 0, done.err
    assert "starting from the first epoch" not in done.out
    assert_same_result(place / "whole", place / "cut")
