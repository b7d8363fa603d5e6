"""Shared by the tests: small feature trees, and programs run as users run them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

# Tests run side by side: more threads than that would wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402 - NumPy, PyTorch and scikit-learn read it when they are imported
import pytest  # noqa: E402
import torch  # noqa: E402
from matplotlib import get_cachedir  # noqa: E402

from emaae.models import CNNAutoEncoder  # noqa: E402
from emaae.runs import checkpoint  # noqa: E402
from emaae.system.files import write_json  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Restore SIGINT, which a shell's background jobs and their programs ignore."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# `make test-faults` repeats the tests of tests/faults hundreds of times; `make test`, a few times.
def pytest_addoption(parser):
    parser.addoption("--faults", action="store_true", help="all of tests/faults: half an hour")


def pytest_terminal_summary(terminalreporter, config):
    if config.option.faults:
        for report in terminalreporter.getreports("passed"):
            for _, line in report.user_properties:
                terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def same_numbers():
    """The random tensors of a test are the same in every run, whichever test runs before."""
    torch.manual_seed(0)


@pytest.fixture
def tell(record_property):
    """Print a line at the end of `make test-faults`."""
    return lambda line: record_property("count", line)


@pytest.fixture
def times(request):
    """How often to try: `times(sample, all)` is `all` with --faults, else `sample`."""
    return lambda sample, everything: everything if request.config.option.faults else sample


def speech(n_frames: int, seed: int) -> np.ndarray:
    """Features (T, 14) that look like speech: smooth articulators, loudness, pitch in Hz."""
    random = np.random.default_rng(seed)
    walk = np.cumsum(random.normal(size=(n_frames + 20, 14)), 0)
    smooth = np.stack([np.convolve(column, np.hanning(9) / 4, "same") for column in walk.T], 1)
    features = smooth[10:-10] - smooth[10:-10].mean(0)
    features[:, 12] = np.abs(features[:, 12]) / 5
    features[:, 13] = np.clip(150 + 20 * features[:, 13], 50, 550)
    return features.astype(np.float32)


def write_tree(root: Path, lengths: dict[str, int], seed: int = 0) -> Path:
    """A feature tree with one utterance of the given length per identity, with its times."""
    for i, (name, n_frames) in enumerate(lengths.items()):
        path = root / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, features=speech(n_frames, 1000 * seed + i))
        times = np.tile(np.float32([0, n_frames / 50]), (n_frames, 1))
        np.savez(root / f"{name}_times.npz", times=times)
    return root


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> Path:
    """The cache folder of all tests and of the programs that they start, not the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        # matplotlib takes seconds to list the fonts of a machine, and keeps its list.
        patch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR") or get_cachedir())
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Path(os.environ["XDG_CACHE_HOME"], "emaae")


@pytest.fixture(scope="session")
def trees(tmp_path_factory) -> dict[str, Path]:
    """Three small splits, flat, utterances of 5 to 120 frames."""
    root = tmp_path_factory.mktemp("features")
    return {
        "train": write_tree(root / "train", {f"t{i}": 40 + 20 * (i % 5) for i in range(8)}, 1),
        "val": write_tree(root / "val", {"v0": 60, "v1": 5, "v2": 90}, 2),
        "test": write_tree(root / "test", {"e0": 75, "e1": 50}, 3),
    }


@pytest.fixture
def small(trees, tmp_path) -> list[str]:
    """Flags of a run that takes a second: small data, a small model, no W&B, two figures."""
    return small_run(trees, tmp_path / "runs")


def small_run(trees: dict[str, Path], out_dir: Path) -> list[str]:
    return [
        *(f"--{name}_dir={path}" for name, path in trees.items()),
        *("--inner_size=32", "--n_encoder=2", "--n_decoder=2", "--epochs=3", "--batch_sz=4"),
        *("--alpha=0.1", "--wandb=disabled", "--device=cpu", "--reconstruction_every=100"),
        f"--out_dir={out_dir}",
    ]


def stir(model: torch.nn.Module, scale: float) -> None:
    """Give an untrained model random biases and batch statistics."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("bias", "running_mean")):
                tensor.copy_(scale * torch.randn_like(tensor))
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand_like(tensor))


def saved(folder: Path, model: CNNAutoEncoder) -> Path:
    """Save a model as runs do; returns the folder, which is made."""
    folder.mkdir(exist_ok=True, parents=True)
    checkpoint.save(folder / "best.pth", model.state_dict())
    write_json(folder / "model_config.json", model.architecture())
    return folder


def environment_of(**more: str) -> dict[str, str]:
    """The variables of a user without a W&B key."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    return clean | {"NETRC": os.devnull} | more


def program(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run a command from the project's root as a user would, without a W&B key."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        env=environment_of(**environment),
    )


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Run the tests that use a module's fixtures in one process, so that these are made once.

    These tests take long. They run first, so that at the end no process waits for another.
    """
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        if any(found[-1].scope == "module" for found in fixtures):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
