"""The film moves the sensors as the features say, in real time."""

from itertools import islice

import numpy as np
import pytest
from PIL import Image
from synthetic_runs import CHANNELS, write_run

from analysis import sagittal
from analysis.model_panels import autoencode
from analysis.runs import read_runs
from emaae.data.phones import SD_MM
from emaae.system.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("film") / "a", epochs=1, model=True)


def test_a_sensor_rests_at_its_place_and_moves_by_its_own_scale():
    z = np.zeros((2, 13))
    z[1, CHANNELS.index("TTX")], z[1, CHANNELS.index("LLY")] = 2, -1
    rest, moved = sagittal.positions(z)
    np.testing.assert_allclose(rest, sagittal.REST_MM)
    expected = {"TT": (2 * SD_MM[4], 0), "LL": (0, -SD_MM[11])}
    for sensor, step in zip(sagittal.SENSORS, moved - rest):
        np.testing.assert_allclose(step, expected.get(sensor, (0, 0)))


def test_the_tongue_goes_through_tip_body_and_dorsum():
    rest = dict(zip(sagittal.SENSORS, sagittal.REST_MM))
    line = sagittal.outlines(sagittal.REST_MM)[0]
    for sensor in ("TT", "TB", "TD"):
        assert np.linalg.norm(line - rest[sensor], axis=1).min() < 2  # mm
    np.testing.assert_allclose(line[[0, -1]], [rest["TT"], sagittal.ROOT_MM])
    folded = sagittal.outlines(np.array(list((rest | {"TB": rest["TT"]}).values())))[0]
    assert np.isfinite(folded).all()  # sensors that touch


def test_the_lips_are_in_front_of_the_tongue_and_the_upper_one_is_above():
    rest = dict(zip(sagittal.SENSORS, sagittal.REST_MM))
    assert rest["UL"][0] < rest["LI"][0] < rest["TT"][0] < rest["TB"][0] < rest["TD"][0]
    assert rest["UL"][1] > rest["LL"][1]


def test_the_film_has_a_frame_each_20_ms_and_only_what_moves_changes(run, tmp_path, capsys):
    path = tmp_path / "film.gif"
    sagittal.main([str(run), "--out", str(path)])
    assert f"{path}: 1.20 s" in capsys.readouterr().out
    with Image.open(path) as film:
        length, frames = 0, []
        for i in range(film.n_frames):
            film.seek(i)
            length += film.info["duration"]
            frames.append(np.asarray(film.convert("L"), dtype=int))
    assert length == 60 * 20
    frames = np.array(frames)
    moving = (frames != frames[0]).any(0)
    height = moving.shape[0]
    assert moving[: height // 15].sum() == 0  # the title
    assert moving[height // 4 : 3 * height // 4].any()  # the mouth
    assert moving[4 * height // 5 :].any()  # the cursor
    assert path.stat().st_size < 8_000 * 60


def test_an_utterance_that_was_not_kept_is_named_beside_those_that_were(run):
    with pytest.raises(UserError, match="run a has not kept other: it has 103-1240-0000"):
        sagittal.main([str(run), "--utterance", "other"])


@pytest.mark.parametrize("read", [True, False])
def test_a_film_is_a_gif_whatever_the_run(run, tmp_path, read):
    ref = str(run) if read else "nowhere"
    with pytest.raises(UserError, match=r"--out must name a \.gif file, got .*film\.mp4"):
        sagittal.main([ref, "--out", str(tmp_path / "film.mp4")])


def test_the_same_run_gives_the_same_frame(run):
    found, _ = autoencode(read_runs(run)[0])
    first, again = (np.asarray(next(islice(sagittal.film(found, "a"), 1, None))) for _ in "ab")
    np.testing.assert_array_equal(first, again)
