"""A training that is continued equals one that was never interrupted, to the last bit."""

import contextlib
import fcntl
import io
import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, small_run, write_tree
from test_training import Notes, split_of

import train
from emaae import training
from emaae.config import Config
from emaae.evaluation import evaluate
from emaae.models import build_model
from emaae.runs import checkpoint
from emaae.runs.folder import RunFolder
from emaae.runs.read import GOOD
from emaae.schedules import SCHEDULES
from emaae.system import signals
from emaae.system.errors import UserError
from emaae.system.signals import Interrupted, defer_interrupts, handle_signals
from emaae.training import TrainingState, fit

TRAIN, VAL = split_of(40, 30, 20, 30, 25, seed=1), split_of(30, 12, seed=2)
# Each epoch keeps its state three times after a batch and once at its end. Early stopping begins
# the schedule after four epochs.
SETTINGS = {
    "inner_size": 16,
    "n_encoder": 2,
    "n_decoder": 2,
    "norm": "batch",
    "epochs": 7,
    "batch_sz": 2,
    "alpha": 0.1,
    "early_stop": True,
    "patience": 2,
    "update": True,
    "alpha_epochs": 3,
    "penalty_scheduler": "geco",
    "reconstruction_every": 100,
}
SCORES = [3.0, 2.0, 2.5, 2.6, 2.4, 2.3, 2.2]


class Stopping(Notes):
    """A run that is told to stop at its `after`th call of save_last, and stores its last state."""

    def __init__(self, after=None):
        super().__init__()
        self.left, self.kept = after, None

    def save_last(self, state, *, now=False):
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGTERM)
        if now:
            file = io.BytesIO()
            torch.save(state(), file)
            file.seek(0)
            self.kept = torch.load(file, weights_only=True)


def begin(settings):
    config = Config.from_mapping(settings)
    torch.manual_seed(config.seed)
    model = build_model(**config.architecture)
    model.normalise(*TRAIN.mean_and_sd())
    return config, model


def whole(settings):
    config, model = begin(settings)
    run = Stopping()
    with scores():
        fitted = fit(model, TRAIN, VAL, config, run)
    return run.rows, model.state_dict(), fitted


def interrupted(settings, after, spoil=lambda kept: kept):
    """As `whole`, but told to stop at the `after`th call of save_last, and continued."""
    config, model = begin(settings)
    first, second = Stopping(after), Stopping()
    with scores():
        with handle_signals(), pytest.raises(Interrupted):
            fit(model, TRAIN, VAL, config, first)
        config, model = begin(settings)
        fitted = fit(model, TRAIN, VAL, config, second, spoil(first.kept))
    return first.rows + second.rows, model.state_dict(), fitted


@contextlib.contextmanager
def scores():
    """Inside, validation gives `SCORES`, one per epoch."""
    left = iter(SCORES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "evaluate", lambda *args: evaluate(*args) | {"score": next(left)})
        yield


def same(one, other):
    rows, weights, fitted = one
    rows2, weights2, fitted2 = other
    equal = json.dumps(rows) == json.dumps(rows2) and fitted.status == fitted2.status
    equal = equal and fitted.selection == fitted2.selection and fitted2.best is not None
    for a, b in ((weights, weights2), (fitted.best, fitted2.best)):
        equal = equal and all(torch.equal(a[name], b[name]) for name in a)
    return equal


@pytest.mark.parametrize("after", [1, 2, 3, 4, 9, 16, 22, 28])
def test_a_continued_training_equals_an_uninterrupted_one(after):
    assert same(whole(SETTINGS), interrupted(SETTINGS, after))


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "step_original"])
def test_every_schedule_continues_from_its_state(schedule):
    settings = SETTINGS | {"penalty_scheduler": schedule, "norm": "none", "optimizer": "adam"}
    assert same(whole(settings), interrupted(settings, 22))


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "muon"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("after", [2, 10, 22])
def test_every_optimizer_and_learning_rate_continues_from_its_state(optimizer, schedule, after):
    own = {"optimizer": optimizer, "lr_schedule": schedule, "lr_warm_up": 0.2, "norm": "layer"}
    settings = SETTINGS | own | {"lr": 0.01, "early_stop": False, "precision": "bf16"}
    assert same(whole(settings), interrupted(settings, after))


@pytest.mark.parametrize("activation", ["batch_topk", "feature_topk"])
@pytest.mark.parametrize("after", [2, 10, 22])
def test_thresholds_of_activations_continue_from_their_state(activation, after):
    settings = SETTINGS | {"activation": activation, "k_fraction": 0.2}
    assert same(whole(settings), interrupted(settings, after))


@pytest.mark.parametrize("after", [9, 18, 22])
def test_a_learning_rate_that_falls_at_an_early_stop_continues_from_its_state(after):
    settings = SETTINGS | {"lr_schedule": "linear", "update": False, "penalty_scheduler": "step"}
    settings |= {"optimizer": "muon"}
    rows, *_ = expected = whole(settings)
    assert [row["lr"] for row in rows] != [row["lr"] for row in rows[:1]] * len(rows)
    assert same(expected, interrupted(settings, after))


FRESH = TrainingState.begin(begin(SETTINGS)[1], begin(SETTINGS)[0]).state_dict()


@pytest.mark.parametrize("item", FRESH)
def test_every_item_of_the_state_is_needed(item):
    """If an item is not restored, the result differs, so the tests above would fail."""
    settings, after = SETTINGS, 22  # five epochs and two batches
    if item == "stopped":
        settings, after = SETTINGS | {"update": False, "penalty_scheduler": "step"}, 16
    expected = whole(settings)

    def spoil(kept):
        assert kept.keys() == FRESH.keys()
        return kept | {item: FRESH[item]}

    try:
        found = interrupted(settings, after, spoil)
    except (UserError, TypeError, StopIteration):
        return
    assert not same(expected, found)


def test_a_state_between_epochs_of_an_earlier_version_is_restored():
    config, model = begin(SETTINGS)
    state = TrainingState.begin(model, config)
    state.load_state_dict(FRESH | {"sums": None, "active": None})
    assert state.state_dict()["sums"] == FRESH["sums"] == [0, 0, 0, 0]
    assert state.active == 0


def test_a_signal_is_raised_at_the_end_of_the_block():
    seen = []

    def work():
        with defer_interrupts():
            with defer_interrupts():
                signal.raise_signal(signal.SIGUSR1)
            seen.append("after the inner block")

    with handle_signals():
        with pytest.raises(Interrupted):
            work()
        with defer_interrupts():
            signal.raise_signal(signal.SIGTERM)  # has been heard already
        seen.append("no second time")
    assert seen == ["after the inner block", "no second time"]


def test_a_second_ctrl_c_ends_at_once(monkeypatch):
    def work():
        with handle_signals(), defer_interrupts():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(signals, "SECOND_AFTER_S", 0)
    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert caught.type is KeyboardInterrupt


# ---- the run folder


def files(run):
    """The contents that must be equal for an interrupted and an uninterrupted run."""
    history = (run / "history.jsonl").read_text()
    weights = torch.load(run / "best.pth", weights_only=True)
    metrics = json.loads((run / "metrics.json").read_text())
    return history, {name: value.tolist() for name, value in weights.items()}, metrics


def flags(small, out_dir, **more):
    more = {"run_name": "r", "epochs": 40, "norm": "batch", "reconstruction_every": 20} | more
    kept = [flag for flag in small if flag.split("=")[0] not in ("--out_dir", "--epochs")]
    return [*kept, f"--out_dir={out_dir}", *(f"--{name}={value}" for name, value in more.items())]


@pytest.fixture(scope="module")
def uninterrupted_run(trees, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert train.main(flags(small_run(trees, out), out)) == 0
    return out / "r"


SLOW = [pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGUSR1, signal.SIGINT)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, *SLOW])
def test_a_run_that_is_told_to_stop_is_continued_by_resume(
    trees, tmp_path, uninterrupted_run, number, monkeypatch
):
    argv = flags(small_run(trees, tmp_path), tmp_path)
    command = [sys.executable, "train.py", *argv]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    for line in process.stdout:
        if line.startswith("epoch  3"):
            process.send_signal(number)
            break
    _, err = process.communicate(timeout=60)
    run = tmp_path / "r"
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert not (run / "metrics.json").exists()
    else:
        assert process.returncode == 130
        assert err.strip() == "train.py: interrupted"
        assert json.loads((run / "metrics.json").read_text())["status"] == "preempted"
        kept = checkpoint.load_last(run)
        assert 3 <= kept["epoch"] < 40
    # What it was given is in its folder.
    assert train.main(["--resume", "--run_name=r", f"--out_dir={tmp_path}"]) == 0
    assert files(run) == files(uninterrupted_run)
    drawn = sorted(path.name for path in (run / "reconstructions").iterdir())
    assert drawn == ["epoch-0001", "epoch-0020", "epoch-0040"]


def stopped(trees, out, after, *more):
    """Start or resume a run in `out` and interrupt it after `after` epochs; returns its folder."""
    real = RunFolder.log

    def log(self, row, seconds):
        real(self, row, seconds)
        if row["epoch"] == after:
            signal.raise_signal(signal.SIGTERM)

    argv = [*flags(small_run(trees, out), out, epochs=6), "--resume", *more]
    with pytest.MonkeyPatch.context() as patch, handle_signals():
        patch.setattr(RunFolder, "log", log)
        with pytest.raises(Interrupted):
            train.main(argv)
    return out / "r"


def test_resume_starts_a_missing_run_and_leaves_a_finished_one_alone(trees, tmp_path, capsys):
    argv = [*flags(small_run(trees, tmp_path), tmp_path, epochs=2), "--resume"]
    assert train.main(argv) == 0
    before = files(tmp_path / "r")
    assert train.main(argv) == 0
    assert "is finished already: nothing is left to do" in capsys.readouterr().out
    moved = [arg for arg in argv if "_dir=" not in arg]  # its data are not asked for any more
    gone = ["--train_dir=/gone/t", "--val_dir=/gone/v", f"--out_dir={tmp_path}"]
    assert train.main([*moved, *gone]) == 0
    assert files(tmp_path / "r") == before


def test_a_signal_while_the_end_is_written_comes_after_it(tmp_path, monkeypatch):
    def write_json(path, content):
        signal.raise_signal(signal.SIGTERM)
        path.write_text(json.dumps(content))

    monkeypatch.setattr("emaae.runs.folder.files.write_json", write_json)
    run, told = RunFolder.open(Config.from_mapping({"out_dir": str(tmp_path)})), []
    run.observers = [SimpleNamespace(on_end=lambda *given: told.append(given[1]))]
    with handle_signals(), pytest.raises(Interrupted), run:
        run.finish({}, "finished", {"split": "val"})
    assert json.loads((run.path / "metrics.json").read_text()) == {"status": "finished"}
    assert told == ["finished"]


@pytest.mark.parametrize("given", ["nothing", "the old name", "new names"])
def test_the_weights_that_a_run_began_with_may_be_gone_when_it_is_continued(trees, tmp_path, given):
    small = small_run(trees, tmp_path)
    assert train.main(flags(small, tmp_path, epochs=1, run_name="first")) == 0
    weights = (tmp_path / "first").rename(tmp_path / "weights")
    began_with = f"--checkpoint={weights / 'best.pth'}"
    assert train.main([*flags(small, tmp_path, epochs=6, run_name="whole"), began_with]) == 0
    stopped(trees, tmp_path, 3, began_with)
    moved = weights.rename(tmp_path / "moved")
    again = [*flags(small, tmp_path, epochs=6), "--resume"]
    if given == "the old name":
        again += [began_with]
    warned = contextlib.nullcontext()
    if given == "new names":
        again += [f"--checkpoint={moved / 'best.pth'}"]
        again += [f"--model_config={moved / 'model_config.json'}"]
        without_effect = "--checkpoint .*: without effect, since .*/r continues"
        warned = pytest.warns(UserWarning, match=without_effect)
    with warned:
        assert train.main(again) == 0
    assert files(tmp_path / "r") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--lr=0.5", "--lr was 0.001 when .* began and is 0.5 now"),
        ("--epochs=7", "--epochs was 6 when .* began and is 7 now"),
        ("--train_dir=other", "the train split was .*'utterances': 8.* and is .*'utterances': 2"),
    ],
)
def test_other_settings_and_other_data_are_refused_and_no_file_changes(
    trees, tmp_path, change, message
):
    run = stopped(trees, tmp_path, 3)
    before = {path: path.read_bytes() for path in run.glob("*.*")}
    write_tree(tmp_path / "other", {"a": 50, "b": 60}, seed=9)
    change = change.replace("other", str(tmp_path / "other"))
    with pytest.raises(UserError, match=message):
        train.main(["--resume", "--run_name=r", f"--out_dir={tmp_path}", "--wandb=offline", change])
    assert {path: path.read_bytes() for path in run.glob("*.*")} == before


def test_if_the_last_state_is_broken_the_previous_one_is_used(trees, tmp_path):
    whole = tmp_path / "whole"
    train.main(flags(small_run(trees, whole), whole, epochs=6))
    stopped(trees, tmp_path, 2)
    (tmp_path / "r" / "reconstructions" / "epoch-best").mkdir()  # a user's own folder
    run = stopped(trees, tmp_path, 4)
    assert (run / "reconstructions" / "epoch-best").is_dir()
    states = [checkpoint.load(run / name) for name in checkpoint.STATE_FILES]
    assert [state["epoch"] for state in states] == [4, 2]
    (run / "last.pt").write_bytes((run / "last.pt").read_bytes()[:5000])
    with pytest.warns(UserWarning, match=r"continuing from last\.previous\.pt"):
        assert train.main(["--resume", "--run_name=r", f"--out_dir={tmp_path}"]) == 0
    assert files(run) == files(whole / "r")


def test_a_run_that_was_moved_continues_where_it_is(trees, tmp_path, monkeypatch):
    run = stopped(trees, tmp_path, 3)
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / "r")
    monkeypatch.chdir(tmp_path)  # --out_dir is by default runs
    assert train.main(["--resume", "--run_name=r"]) == 0
    assert json.loads((tmp_path / "runs" / "r" / "metrics.json").read_text())["status"] in GOOD
    assert not run.exists()


def test_a_history_that_lost_a_line_and_a_newer_format_are_refused(trees, tmp_path):
    run = stopped(trees, tmp_path, 3)
    again = ["--resume", "--run_name=r", f"--out_dir={tmp_path}"]
    lines = (run / "history.jsonl").read_text().splitlines(keepends=True)
    (run / "history.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(UserError, match="has 2 of the 3 epochs before last.pt"):
        train.main(again)
    checkpoint.save_last(run, checkpoint.load_last(run))
    state = checkpoint.load_last(run) | {"format": checkpoint.FORMAT + 1}
    checkpoint.save(run / "last.pt", state)
    with pytest.raises(UserError, match=f"has format {checkpoint.FORMAT + 1}, this program reads"):
        train.main(again)


def test_resume_needs_a_name_and_two_processes_never_write_one_run(trees, tmp_path):
    argv = small_run(trees, tmp_path)
    with pytest.raises(UserError, match="--resume needs --run_name NAME"):
        train.main([*argv, "--resume"])
    run = stopped(trees, tmp_path, 2)
    with open(run / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is writing"):
            train.main(["--resume", "--run_name=r", f"--out_dir={tmp_path}"])
