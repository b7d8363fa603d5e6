"""The guide from audio to a probe: each command as written, on a few recordings."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_sparc
import yaml
from conftest import ROOT
from pages import blocks, copy_project, follow
from scipy.sparse import load_npz

import emaae
from emaae.corpus.encode import encode

GUIDE = ROOT / "docs" / "guide.md"
UTTERANCES = {"train-clean-100": (103, 1034), "dev-clean": (84,), "test-clean": (61,)}


def may_warn(argv: list[str]) -> tuple[int, ...]:
    # Random weights give strange features, which the doctor sees.
    return (0, 1) if "check" in argv else (0,)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project in which the guide was followed from audio to the last command."""
    root = copy_project(tmp_path_factory.mktemp("guide"))
    # Two short runs instead of ninety long ones.
    path = root / "sweeps" / "alpha_schedules.yaml"
    sweep = yaml.safe_load(path.read_text())
    small = {"epochs": 1, "alpha_epochs": 1, "inner_size": 16, "n_encoder": 2, "n_decoder": 2}
    sweep["parameters"] |= {name: {"value": value} for name, value in small.items()}
    sweep["parameters"] |= {"alpha_max": {"value": 0.3}, "seed": {"value": 0}}
    sweep["parameters"]["penalty_scheduler"] = {"values": ["linear", "cosine"]}
    path.write_text(yaml.safe_dump(sweep))
    for part, speakers in UTTERANCES.items():
        for speaker in speakers:
            for number in range(4):
                name = f"{speaker}/1/{speaker}-1-{number:04d}.flac"
                file = root / "LibriSpeech" / part / name
                file.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(file, tiny_sparc.voice(0.8, seed=10 * speaker + number), 16_000)
    hub = tiny_sparc.write_hub(tmp_path_factory.mktemp("hub"))
    follow(GUIDE, root, good=may_warn, WANDB_MODE="disabled", **hub)
    return root


def test_every_recording_ends_as_an_encoding_with_times_that_increase(project):
    names = {
        path.relative_to(project / "LibriSpeech/test-clean").with_suffix("")
        for path in (project / "LibriSpeech/test-clean").rglob("*.flac")
    }
    assert len(names) == 4
    model = emaae.load_model(project / "best-model")
    for name in names:
        z = load_npz(project / "encodings/test" / f"{name}.npz")
        with np.load(project / "encodings/test" / f"{name}_times.npz") as kept:
            times = kept["times"]
        with np.load(project / "features/test-clean" / f"{name}.npz") as kept:
            features = kept["features"]
        assert z.shape == (len(features), 16)
        assert times.shape == (len(features), 2)
        assert (np.diff(times[:, 1]) > 0).all()
        x = np.delete(features, 12, axis=1)  # without loudness
        expected = encode(model, x)
        assert np.allclose(z.toarray(), expected, atol=1e-5)


def test_the_best_of_the_sweep_was_promoted_with_its_card(project):
    runs = sorted((project / "runs/schedules/runs").iterdir())
    scores = [json.loads((run / "metrics.json").read_text())["select/score"] for run in runs]
    assert len(scores) == 2
    promoted = json.loads((project / "runs/schedules/best/promoted.json").read_text())
    assert promoted["score"] == min(scores)
    assert f"run {promoted['run']}" in (project / "best-model/MODEL_CARD.md").read_text()


def test_the_encodings_of_the_guide_are_read_as_it_says(project):
    (snippet,) = blocks(GUIDE, "python")
    name = "61/1/61-1-0000"
    names: dict = {}
    exec(snippet.replace('"encodings', f'"{project}/encodings').replace("NAME", name), names)
    assert names["z"].shape[0] == len(names["times"])
