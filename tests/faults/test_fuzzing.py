"""Random files are read, or refused in one line that names the file."""

import io
import json
import time
import warnings
import zipfile
from dataclasses import fields

import hostile
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st

from emaae.config import Config
from emaae.data.features import check_features
from emaae.data.npz import MAX_BYTES, load_npz
from emaae.models import CNNAutoEncoder
from emaae.runs import checkpoint
from emaae.sweeps import sweep_file
from emaae.system.errors import BadFile, UserError

# Of each of the five in `make test-faults`; in `make test` each gets as many examples.
SECONDS, EXAMPLES = 120, 60


@pytest.fixture
def fuzz(times, tell):
    """Run a property on examples, for seconds or minutes; says how many there were."""

    def run(strategy, check, *known):
        count, until = [0], time.monotonic() + times(0, SECONDS)

        def counted(value):
            count[0] += 1
            check(value)

        for one in known:  # found once, kept for ever
            counted = example(one)(counted)
        number = 0
        while number == 0 or time.monotonic() < until:
            quiet = settings(
                max_examples=times(EXAMPLES, 500),
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            seed(number)(quiet(given(strategy)(counted)))()
            number += 1
        tell(f"{check.__name__}: {count[0]} files")

    return run


def edited(base: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with some of them changed, removed, put in or repeated."""
    place = st.integers(0, len(base) - 1)
    change = st.tuples(st.sampled_from("=-+*"), place, place, st.binary(min_size=1, max_size=6))

    def apply(changes) -> bytes:
        content = bytearray(base)
        for kind, at, other, some in changes:
            if kind == "=":
                content[at : at + len(some)] = some
            elif kind == "-":
                del content[at : at + len(some)]
            elif kind == "+":
                content[at:at] = some
            else:
                content[at:at] = content[other : other + 40]
        return bytes(content)

    return st.lists(change, min_size=1, max_size=5).map(apply)


def zipped(members: dict[str, bytes], method=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


X = np.random.default_rng(0).random((20, 14), np.float32)
ARRAY = hostile.npy((20, 14), content=X.tobytes())


def npz_gives_numbers_or_one_line(content: bytes) -> None:
    try:
        array = load_npz(io.BytesIO(content), "FILE")
        assert array.nbytes <= MAX_BYTES
        assert check_features(array, "FILE").dtype == np.float32
    except BadFile as error:
        hostile.names(error, "FILE")


def test_an_npz_is_read_or_refused(fuzz):
    whole = zipped({"features.npy": ARRAY}, zipfile.ZIP_DEFLATED)
    headers = edited(ARRAY[:128]).map(
        lambda head: zipped({"features.npy": head + ARRAY[128:]}),
    )
    # zipfile cannot write a name that begins with it.
    name = st.text(min_size=1, max_size=8).filter(lambda name: name[0] != "\0")
    names = st.dictionaries(name, st.just(ARRAY), max_size=3).map(zipped)
    known = [whole, *hostile.bombs(1 << 20).values()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zipfile, names that stand twice
        fuzz(edited(whole) | headers | names, npz_gives_numbers_or_one_line, *known)


SWEEP = """program: train.py
method: grid
metric: {name: select/score, goal: minimize}
parameters:
  alpha: {values: [0.1, 0.5]}
  lr: {distribution: log_uniform_values, min: 1.0e-4, max: 0.1}
  update: {value: true}
  inner_size: {distribution: q_uniform, min: 16, max: 64, q: 16}
run_cap: 10
early_terminate: {type: hyperband, min_iter: 3, strict: true}
"""
WORDS = (
    *("&a ", "*a", "<<: ", "[", "]", "{", "}", "!!int ", "!!float ", "- ", ": ", "\n", "  ", "'"),
    *('"', "1e3", "1.0e+308", "-1", "0", ".inf", ".nan", "0x1", "0b", "1:2", "2001-01-01", "~"),
    *("|", ">", "%", "@", "? ", "\t", "#", "9" * 30, "off", "normal", "random", "values", "min"),
    *("max", "q", "mu", "sigma", "probabilities", "distribution", "grid", "command", "${args}"),
)


def a_sweep_file_is_findings_or_one_line(path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        findings = [str(finding) for finding in sweep_file.examine(path)[1]]
    except UserError as error:
        findings = [str(error)]
    assert all(str(path) in line and "\n" not in line for line in findings)


def test_a_sweep_file_is_understood_or_refused(fuzz, tmp_path):
    def a_sweep_file(text):
        a_sweep_file_is_findings_or_one_line(tmp_path / "s.yaml", text)

    place = st.integers(0, len(SWEEP))
    change = st.tuples(place, st.integers(0, 8), st.sampled_from(WORDS) | st.text(max_size=4))

    def apply(changes) -> str:
        text = SWEEP
        for at, n, word in changes:
            text = text[:at] + word + text[at + n :]
        return text

    fuzz(st.lists(change, min_size=1, max_size=4).map(apply), a_sweep_file, SWEEP)


NAMES = [f.name for f in fields(Config)]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from(["True", "1e-3", "None", "geco", "step", "adam", "inf", "9" * 5000, ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


def a_config_or_one_line(given: dict) -> None:
    try:
        config = Config.from_mapping(given)
        json.dumps(vars(config), allow_nan=False)
        config.schedule().alpha(3)
    except UserError as error:
        # A file that is not there is named itself.
        hostile.names(error, "--" if "--" in str(error) else given["model_config"])


def test_a_config_is_valid_or_refused(fuzz):
    known = [{"epochs": 10**400}, {"lr": 10**400}, {"alpha": float("nan")}, {"seed": "1" * 5000}]
    fuzz(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5), a_config_or_one_line, *known)


def test_a_model_config_is_read_or_refused(fuzz, tmp_path):
    def a_model_config(content: bytes) -> None:
        path = tmp_path / "model_config.json"
        path.write_bytes(content)
        try:
            Config.from_mapping({"model_config": str(path)})
        except UserError as error:
            hostile.names(error, path)

    whole = json.dumps(CNNAutoEncoder(13, 16, 2, 2).architecture()).encode()
    architecture = list(json.loads(whole))
    dictionaries = st.dictionaries(st.sampled_from(architecture), VALUES, max_size=6)
    fuzz(edited(whole) | dictionaries.map(lambda d: json.dumps(d).encode()), a_model_config, whole)


def test_the_pickle_of_a_checkpoint_is_read_or_refused(fuzz, tmp_path):
    file = io.BytesIO()
    torch.save(CNNAutoEncoder(13, 8, 2, 2).state_dict(), file)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (pickle,) = (name for name in members if name.endswith("data.pkl"))
    path = tmp_path / "x.pth"

    def a_checkpoint(content: bytes) -> None:
        path.write_bytes(zipped(members | {pickle: content}))
        with torch.device("meta"):
            model = CNNAutoEncoder(13, 8, 2, 2)
        try:
            checkpoint.load_weights(model, path)
        except UserError as error:
            hostile.names(error, path)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzz(edited(members[pickle]), a_checkpoint, members[pickle])
