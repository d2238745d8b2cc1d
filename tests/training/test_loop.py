"""The loop: the same result however it is cut into processes, batches and runs; nothing lost when something fails."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy_training
from lhotse import CutSet
from toy_training import HOURS, SignalAt, ToyData, toy_model

from asrkit.errors import InputError
from asrkit.models.checkpoint import load_weights, read_checkpoint
from asrkit.training import Hook, TrainingConfig, train

OPTIONS = {"epochs": 2, "warm_up_hours": 0.05, "average": 0.5, "save_every": 4, "log_every": 4}


def run(folder: Path, data: ToyData | None = None, hooks=(), model=None, **options) -> dict:
    """Train the toy model in `folder` and return its last checkpoint."""
    config = TrainingConfig(**{**OPTIONS, **options})
    train(model or toy_model(), data or ToyData(), ToyData(3), config, folder, hooks)
    return read_checkpoint(folder / "checkpoints" / "last.pt")


def run_command(folder: Path, kill_at: int = 0, processes: int = 1, **options) -> int:
    """Train the toy model in other processes and return the exit status."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    arguments = [f"{name}={value}" for name, value in {**OPTIONS, **options}.items()]
    command = [*launcher, toy_training.__file__, str(folder), str(kill_at), *arguments]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL).returncode


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same(ours: dict, theirs: dict, tolerance: float = 0.0) -> None:
    """The weights, their average, the optimiser and the progress are the same."""
    for key in ("model", "current"):
        for name, tensor in ours[key].items():
            torch.testing.assert_close(tensor, theirs[key][name], rtol=tolerance, atol=tolerance)
    states = ours["optimiser_state"]["state"], theirs["optimiser_state"]["state"]
    for number, state in states[0].items():
        for name, tensor in state.items():
            same = torch.as_tensor(states[1][number][name])
            torch.testing.assert_close(torch.as_tensor(tensor), same, rtol=tolerance, atol=tolerance, equal_nan=True)
    for name in ("step", "epoch", "batches"):
        assert ours["progress"][name] == theirs["progress"][name]
    assert ours["progress"]["hours"] == pytest.approx(theirs["progress"]["hours"], rel=1e-12)


def test_a_run_leaves_what_it_promises(tmp_path):
    last = run(tmp_path, epochs=3, keep_best=2, learning_rate=0.02)
    assert last["progress"]["step"] == 39 and last["progress"]["epoch"] == 3
    best = last["progress"]["best"]
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == sorted(
        ["last.pt", *(f"step-{step}.pt" for _, step in best)]
    )
    log = log_of(tmp_path)
    assert [r["step"] for r in log if r["split"] == "train"] == list(range(4, 40, 4))
    valid = {r["step"]: r["loss"] for r in log if r["split"] == "valid"}
    assert list(valid) == [13, 26, 39] and best == sorted((loss, step) for step, loss in valid.items())[:2]
    assert valid[39] < valid[13]
    assert {"step", "epoch", "hours", "seconds", "split", "lr", "loss", "square", "size", "gradient_norm"} == set(
        log[0]
    )
    assert log[0]["loss"] == pytest.approx(log[0]["square"] + 1e-3 * log[0]["size"], rel=1e-5)
    assert any((tmp_path / "tensorboard").iterdir())
    summary = json.loads((tmp_path / "train.json").read_text())
    assert summary["parameters"] == 163 and summary["steps"] == 39 and summary["processes"] == 1
    assert summary["hours"] == pytest.approx(39 * HOURS) and summary["peak_memory_bytes"] > 1e7

    model = toy_model()
    load_weights(model, tmp_path / "model.pt")  # the best one, averaged
    model.eval()
    sums = [model(batch, 0.0) for batch in ToyData(3).epoch(0)]
    loss = sum(s["loss"].item() for s in sums) / sum(s["weight"] for s in sums)
    assert loss == pytest.approx(best[0][0], rel=1e-5)


def test_a_finished_run_is_left_alone_and_can_be_made_longer(tmp_path):
    run(tmp_path)
    before = (tmp_path / "train.json").stat().st_mtime_ns
    run(tmp_path)
    assert (tmp_path / "train.json").stat().st_mtime_ns == before
    assert run(tmp_path, epochs=3)["progress"]["epoch"] == 3


def test_two_processes_equal_accumulation(tmp_path):
    """Thirteen batches: one process has one batch more, and the last step is a short one. Dropout is on."""
    assert run_command(tmp_path / "two", processes=2) == 0
    one = run(tmp_path / "one", accumulation=2)
    assert one["progress"]["step"] == 14
    assert_same(read_checkpoint(tmp_path / "two" / "checkpoints" / "last.pt"), one, tolerance=1e-6)
    for ours, theirs in zip(log_of(tmp_path / "two"), log_of(tmp_path / "one"), strict=True):
        assert ours["split"] == theirs["split"] and ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_the_gradient_of_a_step_is_per_label(tmp_path):
    """Over batches of unequal size, it is the gradient of all their losses divided by all their labels."""
    last = run(tmp_path, ToyData(3), model=toy_model(dropout=0.0), accumulation=3, epochs=1, log_every=1)
    model = toy_model(dropout=0.0)
    sums = [model(batch, 0.0) for batch in ToyData(3).epoch(0)]
    loss = sum(s["loss"] for s in sums) / sum(s["weight"] for s in sums)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    record = log_of(tmp_path)[0]
    assert last["progress"]["step"] == 1
    assert record["gradient_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    draw = random.Random(0)
    for step in (draw.randrange(5, 13), draw.randrange(14, 26)):  # in the first epoch and in the second
        assert run_command(tmp_path / "killed", kill_at=step) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "train.json").exists()
    resumed, whole = run(tmp_path / "killed"), run(tmp_path / "whole")
    assert_same(resumed, whole)
    assert resumed["progress"]["best"] == whole["progress"]["best"]
    position = [(r["step"], r["split"]) for r in log_of(tmp_path / "whole")]
    assert [(r["step"], r["split"]) for r in log_of(tmp_path / "killed")] == position


def test_resumed_with_another_accumulation(tmp_path):
    """Another grouping of the same batches goes on from the same place."""
    with pytest.raises(SystemExit):
        run(tmp_path, hooks=[SignalAt(9, signal.SIGTERM)])
    resumed = run(tmp_path, accumulation=2)
    assert resumed["progress"]["epoch"] == 2
    assert resumed["progress"]["hours"] == pytest.approx(26 * HOURS)  # every batch once an epoch


@pytest.mark.parametrize("number, optimiser", [(signal.SIGTERM, "adamw"), (signal.SIGINT, "scaled_adam")])
def test_a_stop_signal_saves_and_ends(tmp_path, number, optimiser):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "stopped", hooks=[SignalAt(6, number)], optimiser=optimiser)
    assert stop.value.code == 128 + number and signal.getsignal(number) == before
    assert read_checkpoint(tmp_path / "stopped" / "checkpoints" / "last.pt")["progress"]["step"] == 6
    assert (tmp_path / "stopped" / "model.pt").exists() and not (tmp_path / "stopped" / "train.json").exists()
    assert_same(run(tmp_path / "stopped", optimiser=optimiser), run(tmp_path / "whole", optimiser=optimiser))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    class FillDisk(Hook):
        def after_step(self, state):
            if state.progress.step == 10:
                monkeypatch.setattr("asrkit.files.os.fsync", no_space)

    def no_space(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError) as error:
        run(tmp_path / "full", hooks=[FillDisk()])
    last = tmp_path / "full" / "checkpoints" / "last.pt"
    assert str(error.value) == f"{last}: cannot be written: No space left on device"
    assert read_checkpoint(last)["progress"]["step"] == 8
    monkeypatch.undo()
    assert_same(run(tmp_path / "full"), run(tmp_path / "whole"))
    assert not list((tmp_path / "full" / "checkpoints").glob(".*"))


def test_a_checkpoint_of_another_model_or_optimiser_is_named(tmp_path):
    run(tmp_path, epochs=1)
    with pytest.raises(InputError, match=r"last.pt: weights of another model: 'first.weight' is \(16, 6\)"):
        run(tmp_path, model=toy_model(hidden=8))
    with pytest.raises(InputError, match="last.pt: trained with AdamW, not ScaledAdam"):
        run(tmp_path, optimiser="scaled_adam")
    load_weights(toy_model(), tmp_path / "model.pt")
    (tmp_path / "model.pt").replace(tmp_path / "checkpoints" / "last.pt")
    with pytest.raises(InputError, match="last.pt: a model file, but not a checkpoint of training"):
        run(tmp_path)


def test_a_batch_without_finite_loss_is_skipped_and_saved(tmp_path, caplog):
    last = run(tmp_path, ToyData(bad=(5,)), epochs=1)
    assert last["progress"]["step"] == 13 and last["progress"]["skipped"] == 0
    assert all(tensor.isfinite().all() for tensor in [*last["current"].values(), *last["model"].values()])
    assert sum("skipped" in record.message for record in caplog.records) == 1
    (batch,) = torch.load(tmp_path / "bad_batches" / "step-6.pt", weights_only=True)["batches"]
    assert batch["features"].isnan().any() and batch["ids"][0] == "epoch0-batch5-0"
    assert [cut.id for cut in CutSet.from_file(tmp_path / "bad_batches" / "step-6.jsonl.gz")] == batch["ids"]
    assert all(r["loss"] is not None for r in log_of(tmp_path))


def test_of_several_batches_only_the_bad_one_is_saved(tmp_path):
    run(tmp_path, ToyData(bad=(5,)), epochs=1, accumulation=4)
    (batch,) = torch.load(tmp_path / "bad_batches" / "step-2.pt", weights_only=True)["batches"]
    assert batch["ids"][0] == "epoch0-batch5-0"


def test_too_many_bad_steps_in_a_row_end_the_run(tmp_path):
    with pytest.raises(InputError, match="bad_batches: loss or gradient not finite in 5 steps in a row"):
        run(tmp_path, ToyData(bad=(2, 4, 5, 6, 7, 8, 9)))
    assert read_checkpoint(tmp_path / "checkpoints" / "last.pt")["progress"]["step"] == 8
    assert len(list((tmp_path / "bad_batches").glob("*.pt"))) == 6


def test_the_learning_rate_depends_on_hours_not_on_steps(tmp_path):
    for schedule in ("cosine", "eden"):
        options = {"schedule": schedule, "warm_up_hours": 0.1, "eden_hours": (0.1, 0.2), "log_every": 1}
        run(tmp_path / f"{schedule}1", ToyData(12), **options)
        run(tmp_path / f"{schedule}3", ToyData(12), accumulation=3, **options)
        rates = [
            {round(r["hours"], 6): r["lr"] for r in log_of(tmp_path / f"{schedule}{a}") if r["split"] == "train"}
            for a in (1, 3)
        ]
        assert len(rates[0]) == 24 and len(rates[1]) == 8
        assert all(rates[0][hours] == pytest.approx(rate, abs=1e-12) for hours, rate in rates[1].items())


def test_the_running_average(tmp_path):
    class Watch(Hook):
        def __init__(self):
            self.weights = []

        def after_step(self, state):
            self.weights.append(state.model.second.bias.detach().clone())

    watch = Watch()
    last = run(tmp_path / "average", hooks=[watch], average=0.25, epochs=1)
    average = torch.zeros(3)
    for n, weights in enumerate(watch.weights, start=1):
        average += (weights - average) * min(1.0, 1 / (0.25 * n))
    torch.testing.assert_close(last["model"]["second.bias"], average)
    assert not torch.equal(average, watch.weights[-1])
    last = run(tmp_path / "none", average=0.0, epochs=1)
    assert torch.equal(last["model"]["second.bias"], last["current"]["second.bias"])


def test_hooks_see_each_step_and_keep_their_state(tmp_path):
    class Freeze(Hook):
        """Holds one weight at zero, as a pruning mask would."""

        def __init__(self):
            self.seen = {"before": 0, "after": 0}

        def before_step(self, state):
            assert state.gradient.norm() > 0 and state.model.first.weight.grad.abs().max() > 0
            self.seen["before"] += 1

        def after_step(self, state):
            with torch.no_grad():
                state.model.first.weight[0] = 0
            self.seen["after"] += 1

        def on_save(self, state):
            return self.seen

        def on_load(self, saved):
            self.seen = saved

    run(tmp_path, hooks=[Freeze()], epochs=1)
    hook = Freeze()
    last = run(tmp_path, hooks=[hook], epochs=2)
    assert hook.seen == {"before": 26, "after": 26}
    assert last["model"]["first.weight"][0].abs().max() == 0 and last["model"]["first.weight"][1].abs().max() > 0


def test_bf16_learns_and_keeps_float32_weights(tmp_path):
    last = run(tmp_path, bf16=True, learning_rate=0.02, epochs=4)
    losses = [r["loss"] for r in log_of(tmp_path) if r["split"] == "valid"]
    assert losses[-1] < losses[0]
    assert all(tensor.dtype == torch.float32 for tensor in last["current"].values())


def test_steps_end_a_run_and_validations_may_come_inside_an_epoch(tmp_path):
    last = run(tmp_path, steps=17, validate_every=5)
    assert last["progress"]["step"] == 17 and last["progress"]["epoch"] == 1
    log = log_of(tmp_path)
    assert [r["step"] for r in log if r["split"] == "valid"] == [5, 10, 15, 17]


def test_without_validation_data_the_last_average_is_the_model(tmp_path):
    train(toy_model(), ToyData(), None, TrainingConfig(**OPTIONS), tmp_path)
    last, model = (read_checkpoint(tmp_path / name)["model"] for name in ("checkpoints/last.pt", "model.pt"))
    assert all(torch.equal(last[name], model[name]) for name in last)


def test_no_data_is_one_line(tmp_path):
    with pytest.raises(InputError, match="training data: no batches"):
        run(tmp_path, ToyData(0))
    with pytest.raises(InputError, match="validation data: no batches"):
        train(toy_model(), ToyData(), ToyData(0), TrainingConfig(**OPTIONS), tmp_path)


def test_the_loop_stays_short():
    assert len(Path(sys.modules["asrkit.training.loop"].__file__).read_text().splitlines()) < 300
