"""Buckets, filled by cottoncandy and read without it, from an S3 server on this machine."""

import gzip
import http.client
import http.server
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import saved, speech, write_tree
from scipy.sparse import load_npz

from emaae.__main__ import main
from emaae.config import Config
from emaae.data.bucket import array_in, fetch, list_features, open_bucket, write_array
from emaae.data.features import find_features, frame_times, read_features
from emaae.data.load import load_splits
from emaae.models import CNNAutoEncoder, build_model
from emaae.system.errors import UserError

moto_server = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")

ROOT = Path(__file__).resolve().parents[1]
SECRET = "dummy-secret-that-no-message-shows"
RAW = {"dtype": "<f4", "shape": "5,3", "compression": "gzip", "order": "C"}
X = np.arange(15, dtype=np.float32).reshape(5, 3)


def read_array(bucket, key, etag=None):
    return array_in(fetch(bucket, key, etag))


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory):
    """A server, dummy credentials for it, and a home that cottoncandy may write to."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.delenv("XDG_CONFIG_HOME", raising=False)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_ACCESS_KEY_ID", "dummy")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        yield host, port
    server.stop()


@pytest.fixture
def fresh_session(monkeypatch):
    """boto3 keeps the first credentials that it finds: forget them for one test."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


@pytest.fixture(scope="module")
def cc(environment):
    """Cottoncandy's own interface to a new bucket."""
    cottoncandy = pytest.importorskip("cottoncandy")  # not above: its import writes to the home
    boto3.client("s3").create_bucket(Bucket="speech")
    url = os.environ["AWS_ENDPOINT_URL"]
    return cottoncandy.get_interface("speech", "dummy", SECRET, url, verbose=False)


@pytest.fixture(scope="module")
def handle(cc):
    handle = open_bucket("speech")
    for name in ("train/a/x", "train/b/x", "train/top", "train2/x"):
        cc.upload_raw_array(name, X)
        cc.upload_raw_array(f"{name}_times", X[:, :2].copy())
    for name in ("train/a/mngu0_s1_0001", "train/rate_1.2"):
        cc.upload_raw_array(name, X)
    put("train/saved.npz", npz(features=X, other=X[:2]))
    put("train/saved_times.npz", npz(times=X[:, :2]))
    for name in (
        "train/x_config.json",
        "train/a/sound.wav",
        "train/notes.npy",
        "train/a/",
        "readme",
    ):
        put(name, b"")
    return handle


def put(key, content, **metadata):
    boto3.client("s3").put_object(Bucket="speech", Key=key, Body=content, Metadata=metadata)


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def identities(handle, prefix, recursive=True):
    return [file.identity for file in list_features(handle, prefix, recursive)[0]]


def one_line(caught):
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_every_feature_is_listed_once_and_other_objects_are_left_out(handle):
    found, keys = list_features(handle, "train", recursive=True)
    assert [(file.identity, file.path) for file in found] == [
        ("a/mngu0_s1_0001", "train/a/mngu0_s1_0001"),
        ("a/x", "train/a/x"),
        ("b/x", "train/b/x"),
        ("rate_1.2", "train/rate_1.2"),
        ("saved", "train/saved.npz"),
        ("top", "train/top"),
    ]
    assert {file.path for file in found} | {"train/top_times", "train/x_config.json"} <= set(keys)


def test_without_recursive_only_what_lies_directly_under_the_prefix_is_listed(handle):
    assert identities(handle, "train", recursive=False) == ["rate_1.2", "saved", "top"]


def test_a_prefix_means_a_folder_and_not_the_beginning_of_a_name(handle):
    assert identities(handle, "train2") == ["x"]
    assert "train2/x" not in list_features(handle, "train", recursive=True)[1]
    with pytest.raises(UserError, match="no objects under s3://speech/tra/"):
        list_features(handle, "tra", recursive=True)


@pytest.mark.parametrize("prefix", ["train/a", "/train/a", "train/a/"])
def test_slashes_around_a_prefix_do_not_matter(handle, prefix):
    assert identities(handle, prefix) == ["mngu0_s1_0001", "x"]


def test_an_empty_prefix_is_the_whole_bucket(handle):
    assert {"readme", "train/a/x", "train2/x"} <= set(identities(handle, ""))
    assert identities(handle, "", recursive=False) == ["readme"]


def test_names_are_taken_literally(cc, handle):
    for name in ("literal/[1]/a%20b", "literal/[1]/c*d", "literal/1/e"):
        cc.upload_raw_array(name, X)
    assert identities(handle, "literal/[1]") == ["a%20b", "c*d"]
    np.testing.assert_array_equal(read_array(handle, "literal/[1]/a%20b"), X)


@pytest.fixture(scope="module")
def many(handle, environment):
    """The features of 1,100 short utterances by their names, which are under speech/many."""
    # Plain requests, which the test server does not ask to be signed: half the time of boto3's.
    connection = http.client.HTTPConnection(*environment)
    features = {f"{i:04d}": speech(2 + i % 3, seed=i) for i in range(1100)}
    for name, array in features.items():
        about = RAW | {"compression": "False", "shape": f"{len(array)},14"}
        headers = {f"x-amz-meta-{key}": text for key, text in about.items()}
        connection.request("PUT", f"/speech/many/{name}", array.tobytes(), headers)
        connection.getresponse().read()
    connection.close()
    return features


def test_a_listing_longer_than_a_page_is_complete(handle, many):
    assert identities(handle, "many", recursive=True) == list(many)
    assert identities(handle, "many", recursive=False) == list(many)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i2", "|b1"])
@pytest.mark.parametrize("shape", [(15,), (5, 3), (5, 1), (0, 3)])
def test_a_raw_array_reads_as_it_was_uploaded(cc, handle, dtype, shape):
    x = X.ravel()[: np.prod(shape)].reshape(shape).astype(dtype)
    cc.upload_raw_array("read/x", x)
    y = read_array(handle, "read/x")
    assert y.dtype == x.dtype
    assert y.flags.writeable
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("compression", [False, "gzip", "Zstd"])
def test_compressed_and_uncompressed_arrays_are_read(cc, handle, compression):
    cc.upload_raw_array("read/compressed", X, compression=compression)
    np.testing.assert_array_equal(read_array(handle, "read/compressed"), X)


def test_a_transposed_array_reads_as_it_was_uploaded(cc, handle):
    with pytest.warns(UserWarning, match="contiguous|order"):
        cc.upload_raw_array("read/transposed", np.asfortranarray(X))
    np.testing.assert_array_equal(read_array(handle, "read/transposed"), X)


def test_an_npz_object_reads_as_it_was_saved(handle):
    np.testing.assert_array_equal(read_array(handle, "train/saved.npz"), X)
    np.testing.assert_array_equal(read_array(handle, "train/saved_times.npz"), X[:, :2])


def test_an_array_takes_one_request(handle):
    requests = []
    events = handle.meta.client.meta.events
    events.register("before-send.s3", lambda request, **_: requests.append(request.method))
    read_array(handle, "train/top")
    assert requests == ["GET"]


def test_a_prefix_without_objects_is_refused_and_existing_ones_are_named(handle):
    with pytest.raises(
        UserError, match=r"s3://speech/trian/.*prefixes that exist: .*train, train2"
    ):
        list_features(handle, "trian", recursive=True)
    with pytest.raises(UserError, match="prefixes that exist: train/a, train/b"):
        list_features(handle, "train/c/d", recursive=False)


def test_features_in_folders_only_are_reported_with_the_flag_that_reads_them(cc, handle):
    cc.upload_raw_array("deep/103/1240/103-1240-0000", X)
    with pytest.raises(UserError, match=r"only folders \(deep/103\): pass --recursive"):
        list_features(handle, "deep", recursive=False)
    assert identities(handle, "deep") == ["103/1240/103-1240-0000"]


def test_a_prefix_with_other_files_only_is_refused(handle):
    put("audio/x.wav", b"")
    with pytest.raises(UserError, match="holds 1 objects but no features.*audio/x.wav"):
        list_features(handle, "audio", recursive=True)


def test_one_utterance_in_two_formats_is_refused(cc, handle):
    cc.upload_raw_array("twice/x", X)
    put("twice/x.npz", npz(features=X))
    with pytest.raises(UserError, match="twice/x and twice/x.npz would be the same utterance, x: "):
        list_features(handle, "twice", recursive=True)


def test_an_object_that_does_not_exist_is_named(handle):
    with pytest.raises(UserError, match="s3://speech/train/gone does not exist"):
        read_array(handle, "train/gone")


def test_an_object_without_metadata_is_not_a_raw_array(handle):
    with pytest.raises(UserError, match="s3://speech/readme is not a raw array.*upload_raw_array"):
        read_array(handle, "readme")


GZIPPED = gzip.compress(X.tobytes(), mtime=0)


@pytest.mark.parametrize(
    ("content", "metadata", "expected"),
    [
        (GZIPPED, {"shape": "6,3"}, "must hold .* bytes.*got 60"),
        (GZIPPED, {"shape": "4,3"}, "must hold .* bytes.*got more"),
        (X.tobytes(), {"shape": "6,3", "compression": "False"}, "must hold .* bytes.*got 60"),
        (X.tobytes(), {"shape": "4,3", "compression": "False"}, "must hold .* bytes.*got more"),
        (GZIPPED, {"dtype": "<f3"}, "must hold plain numbers such as <f4, got dtype '<f3'"),
        (GZIPPED, {"dtype": "<f8"}, "must hold 120 bytes for <f8"),
        (GZIPPED, {"shape": "5,-3"}, "must have a shape such as 100,14, got '5,-3'"),
        (GZIPPED, {"shape": "9" * 19}, "must have a shape such as 100,14"),
        (GZIPPED, {"shape": "1" + ",1" * 32}, "must have a shape such as 100,14"),
        (GZIPPED, {"shape": "4399,4399"}, "must hold 77404804 bytes .* got 60"),
        (GZIPPED, {"compression": "rot13"}, "must be compressed with gzip or .* got 'rot13'"),
        (GZIPPED, {"compression": "LZ4"}, "must be compressed with gzip or .* got 'LZ4'"),
        (GZIPPED, {"compression": "Zstd"}, "must hold Zstd data"),
        (GZIPPED[:-5], {}, "must hold gzip data"),
        (b"", {}, "must hold .* bytes.*got 0"),
    ],
    ids=range(15),
)
def test_metadata_that_do_not_describe_the_object_are_refused(handle, content, metadata, expected):
    put("bad/metadata", content, **RAW | metadata)
    with pytest.raises(UserError, match=f"s3://speech/bad/metadata {expected}") as caught:
        read_array(handle, "bad/metadata")
    assert "upload it again" in one_line(caught)


def test_a_read_only_array_that_cottoncandy_mislabels_is_refused_and_not_scrambled(cc, handle):
    x = X.copy()
    x.flags.writeable = False
    cc.upload_raw_array("bad/order", x)
    assert not np.array_equal(cc.download_raw_array("bad/order"), X)
    with pytest.raises(UserError, match="s3://speech/bad/order must be in order C, got 'F'"):
        read_array(handle, "bad/order")


@pytest.mark.parametrize("compression", ["gzip", "Zstd"])
def test_an_object_that_inflates_beyond_its_metadata_is_refused(cc, handle, compression):
    cc.upload_raw_array("bad/bomb", np.zeros((300_000, 14), np.float32), compression)
    content = cc.get_object("bad/bomb").get()["Body"].read()
    assert len(content) < 200_000
    put("bad/bomb", content, **RAW | {"compression": compression})
    with pytest.raises(UserError, match="bad/bomb must hold "):
        read_array(handle, "bad/bomb")


def test_an_object_longer_than_any_utterance_is_refused(handle):
    put("bad/large", GZIPPED, **RAW | {"shape": "9000000,14"})
    with pytest.raises(UserError, match="bad/large is too large .* its array has 0.5 GB"):
        read_array(handle, "bad/large")


def test_arrays_of_objects_are_refused(cc, handle):
    cc.upload_raw_array("bad/objects", np.array([[1, None]], dtype=object))
    with pytest.raises(UserError, match=r"bad/objects .* dtype '\|O'.*never unpickled"):
        read_array(handle, "bad/objects")


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return (os.mkdir, (self.folder,))


def test_nothing_in_a_bucket_is_ever_unpickled(cc, handle, monkeypatch, tmp_path):
    numcodecs = pytest.importorskip("numcodecs")
    if hasattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE"):
        monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True)
    bomb = Bomb(tmp_path / "went_off")
    put("bad/codec", pickle.dumps(bomb), **RAW | {"compression": "pickle"})
    put("bad/array.npz", npz(features=np.array([[bomb]])))
    with pytest.raises(UserError, match="s3://speech/bad/codec must be compressed with gzip"):
        read_array(handle, "bad/codec")
    with pytest.raises(UserError, match="s3://speech/bad/array.npz"):
        read_array(handle, "bad/array.npz")
    assert not Path(bomb.folder).exists()
    with pytest.raises(TypeError):  # cottoncandy's own reader sets it off
        cc.download_raw_array("bad/codec")
    assert Path(bomb.folder).exists()


def test_a_missing_bucket_is_an_error_and_not_only_printed(capfd):
    with pytest.raises(
        UserError, match="s3://speach does not exist at AWS_ENDPOINT_URL=http://127"
    ):
        open_bucket("speach")
    assert capfd.readouterr() == ("", "")


def test_a_bucket_that_vanished_is_named():
    boto3.client("s3").create_bucket(Bucket="passing")
    handle = open_bucket("passing")
    boto3.client("s3").delete_bucket(Bucket="passing")
    with pytest.raises(UserError, match="s3://passing/x does not exist at .*expected a bucket"):
        read_array(handle, "x")


@pytest.mark.parametrize("name", ["two words", "a/b", "s3://speech"])
def test_a_name_that_no_bucket_can_have_is_refused(name):
    with pytest.raises(UserError, match="expected a bucket name without spaces or") as caught:
        open_bucket(name)
    one_line(caught)


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_missing_credentials_are_named_by_their_variables(fresh_session, monkeypatch, missing):
    monkeypatch.delenv(missing)
    with pytest.raises(
        UserError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    ) as caught:
        open_bucket("speech")
    one_line(caught)


def test_an_aws_profile_that_does_not_exist_is_refused(fresh_session, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "lab")
    with pytest.raises(UserError, match="ProfileNotFound.*check the AWS_"):
        open_bucket("speech")


def test_refused_credentials_are_reported_without_them(handle, environment):
    def check_credentials_after(n_requests):
        connection = http.client.HTTPConnection(*environment)
        connection.request("POST", "/moto-api/reset-auth", str(n_requests))
        assert json.loads(connection.getresponse().read())["status"] == "ok"
        connection.close()

    check_credentials_after(0)
    try:
        with pytest.raises(UserError, match="s3://speech/train/ was refused.*InvalidAcc") as caught:
            list_features(handle, "train", recursive=True)
    finally:
        check_credentials_after("inf")
    one_line(caught)


def test_an_endpoint_that_is_down_is_reported_within_seconds(fresh_session, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://person:{SECRET}@127.0.0.1:{port}")
    start = time.monotonic()
    with pytest.raises(UserError, match=f"cannot be reached at .*=127.0.0.1:{port}") as caught:
        open_bucket("speech")
    one_line(caught)
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("url", ["s3.example.org", "ftp://s3.example.org"])
def test_an_endpoint_that_is_not_a_web_address_is_refused(fresh_session, monkeypatch, url):
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(UserError, match=f"AWS_ENDPOINT_URL={url} .*https://s3.example.org"):
        open_bucket("speech")


def test_an_endpoint_that_is_a_web_page_is_refused(fresh_session, monkeypatch):
    class Page(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(301)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{page.server_port}")
        with pytest.raises(UserError, match="expected an S3 endpoint:"):
            open_bucket("speech")
        page.shutdown()


def test_the_command_that_installs_boto3_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UserError, match="pip install -r requirements-bucket.txt"):
        open_bucket("speech")


def test_reading_needs_no_cottoncandy(handle):
    program = """
import sys
from emaae.data.bucket import array_in, fetch, open_bucket
print(array_in(fetch(open_bucket("speech"), "train/top")).sum(), "cottoncandy" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{X.sum()} False\n", "")


def test_a_bucket_gives_the_splits_that_a_folder_gives(cc, handle, trees):
    folders = {f"{split}_dir": str(path) for split, path in trees.items()}
    for split, path in trees.items():
        for name, file, _ in find_features(path, recursive=True):
            cc.upload_raw_array(f"features/{split}/{name}", read_features(file))
    prefixes = {f"{split}_dir": f"features/{split}" for split in trees}
    from_bucket = load_splits(Config.from_mapping(prefixes | {"bucket": "speech"}))
    from_folder = load_splits(Config.from_mapping(folders))
    assert from_bucket.keys() == from_folder.keys() == {"train", "val", "test"}
    for split in trees:
        assert from_bucket[split].fingerprint() == from_folder[split].fingerprint()


def test_a_second_start_only_lists_until_an_object_changes(cc, handle, monkeypatch):
    features = np.arange(5 * 14, dtype=np.float32).reshape(5, 14)
    for name in ("a", "b"):
        cc.upload_raw_array(f"stored/{name}", features + ord(name))
    given = {"bucket": "speech", "train_dir": "stored", "val_dir": "stored"}
    config = Config.from_mapping(given)

    def fingerprint() -> str:
        return load_splits(config, wanted=("train",))["train"].fingerprint()

    read = []
    monkeypatch.setattr(
        "emaae.data.bucket.fetch", lambda *args: read.append(args[1]) or fetch(*args)
    )
    first = fingerprint()
    assert fingerprint() == first
    assert read == ["stored/a", "stored/b"]
    cc.upload_raw_array("stored/b", features)
    assert fingerprint() != first
    assert len(read) == 4


def test_an_object_that_changes_during_reading_is_refused(handle):
    put("changing/x.npz", npz(features=X))
    ((file,), _) = list_features(handle, "changing", recursive=True)
    assert np.array_equal(read_array(handle, file.path, file.stamp[1]), X)
    put("changing/x.npz", npz(features=X + 1))
    with pytest.raises(UserError, match="changing/x.npz has changed since it was listed"):
        read_array(handle, file.path, file.stamp[1])


def test_an_answer_of_unknown_length_is_read_up_to_the_limit(monkeypatch):
    answer = {"Body": io.BytesIO(npz(features=X)), "Metadata": {}}  # of a server that sends chunks
    client = SimpleNamespace(get_object=lambda **query: answer)
    bucket = SimpleNamespace(name="b", meta=SimpleNamespace(client=client))
    np.testing.assert_array_equal(read_array(bucket, "x.npz"), X)
    answer["Body"].seek(0)
    monkeypatch.setattr("emaae.data.bucket.MAX_BYTES", 100)
    with pytest.raises(UserError, match="s3://b/x.npz is too large for one utterance"):
        read_array(bucket, "x.npz")


def test_an_object_with_the_wrong_columns_is_named(cc, handle):
    cc.upload_raw_array("narrow/train/x", X)
    config = {"bucket": "speech", "train_dir": "narrow/train", "val_dir": "narrow/train"}
    with pytest.raises(UserError, match=r"s3://speech/narrow/train/x has shape \(5, 3\): expected"):
        load_splits(Config.from_mapping(config))


# ---- a model on a bucket


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a small model."""
    torch.manual_seed(0)
    net = CNNAutoEncoder(13, 16, 2, 2)
    net.normalise(torch.full((13,), 1.0), torch.full((13,), 30.0))
    return saved(tmp_path_factory.mktemp("model"), net)


@pytest.mark.slow
def test_1100_objects_are_encoded_as_from_a_folder(handle, many, model, tmp_path):
    (tmp_path / "features").mkdir()
    for name, features in many.items():
        np.savez(tmp_path / f"features/{name}.npz", features=features)
    for i, where in enumerate((["many", "--bucket=speech"], [str(tmp_path / "features")])):
        given = [f"--model={model}", "--device=cpu", f"--out={tmp_path / str(i)}", "--features"]
        assert main(["encode", *given, *where]) == 0
    found = sorted(path.name for path in (tmp_path / "0").glob("*.npz"))
    assert len(found) == 2 * len(many)
    for name in found:
        one, other = (np.load(tmp_path / which / name) for which in "01")
        for key in one.files:
            np.testing.assert_allclose(one[key], other[key], atol=1e-6)


def test_a_model_is_measured_on_a_bucket_as_on_a_folder(cc, handle, model, trees, tmp_path):
    for name, file, _ in find_features(trees["val"], recursive=True):
        cc.upload_raw_array(f"measured/{name}", read_features(file))
    rows = []
    for where in (["measured", "--bucket=speech"], [str(trees["val"])]):
        out = tmp_path / "row.json"
        assert main(["evaluate", f"--model={model}", f"--out={out}", "--features", *where]) == 0
        rows.append(json.loads(out.read_text()))
    assert rows[0] == rows[1]
    assert rows[0]["fvu"] > 0


def test_times_and_npz_in_a_bucket_are_read_and_finished_encodings_are_kept(
    cc, handle, model, tmp_path, capsys
):
    own = frame_times(20) + np.float32(3)
    cc.upload_raw_array("timed/raw", speech(20, 0))
    cc.upload_raw_array("timed/raw_times", own)
    put("timed/saved.npz", npz(features=speech(20, 1)))
    put("timed/saved_times.npz", npz(times=own))
    cc.upload_raw_array("timed/without", speech(20, 2))
    given = [f"--model={model}", "--features=timed", "--bucket=speech", f"--out={tmp_path / 'o'}"]
    for told in ("3 utterances written\n", "0 utterances written, 3 were there already\n"):
        assert main(["encode", *given]) == 0
        assert capsys.readouterr().out.endswith(told)
    for name, times in {"raw": own, "saved": own, "without": frame_times(20)}.items():
        assert np.array_equal(np.load(tmp_path / f"o/{name}_times.npz")["times"], times)
        assert np.load(tmp_path / f"o/{name}.npz")["features"].shape == (20, 16)
    cc.upload_raw_array("timed/raw", speech(9, 5))
    assert main(["encode", *given]) == 0
    assert "1 utterances written, 2 were there already" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["encode", "evaluate"])
@pytest.mark.parametrize(
    ("prefix", "bucket", "message"),
    [
        ("trian", "speech", "no objects under s3://speech/trian/"),
        ("train", "speach", "s3://speach does not exist"),
        ("narrow", "speech", r"s3://speech/narrow/x has shape \(5, 3\)"),
    ],
)
def test_a_wrong_bucket_prints_one_line(cc, handle, model, tmp_path, verb, prefix, bucket, message):
    cc.upload_raw_array("narrow/x", X)
    given = [f"--features={prefix}", f"--bucket={bucket}", f"--out={tmp_path / 'o.json'}"]
    with pytest.raises(UserError, match=message) as caught:
        main([verb, f"--model={model}", *given])
    one_line(caught)


# ---- encodings into a bucket


def test_cottoncandy_downloads_what_was_written(cc, handle):
    for array in (X, np.asfortranarray(X), X[:, 0].astype("<f8"), np.float16(X)):
        assert write_array(handle, "out/x", array, "x", f"{array.dtype}{array.shape}{id(array)}")
        back = cc.download_raw_array("out/x")
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)
        np.testing.assert_array_equal(read_array(handle, "out/x"), array)


def test_encodings_are_uploaded_once(cc, handle, tmp_path, capsys):
    write_tree(tmp_path / "features", {"s/a": 30, "s/b": 30})
    torch.manual_seed(0)
    model = build_model(inner_size=8, n_encoder=2, n_decoder=2)
    saved(tmp_path, model)
    command = ["encode", "--model", str(tmp_path / "best.pth"), "--recursive", "--format", "sparse"]
    command += ["--features", str(tmp_path / "features"), "--out", str(tmp_path / "z")]
    for n_new in (2, 0):
        assert main([*command, "--upload", "s3://speech/z/v1"]) == 0
        assert f"s3://speech/z/v1: {n_new} utterances uploaded" in capsys.readouterr().out
    for name in ("s/a", "s/b"):
        z = cc.download_raw_array(f"z/v1/{name}")
        assert z.shape == (30, 8)
        assert z.dtype == np.float32
        np.testing.assert_array_equal(z, load_npz(tmp_path / "z" / f"{name}.npz").toarray())
        times = cc.download_raw_array(f"z/v1/{name}_times")
        with np.load(tmp_path / "z" / f"{name}_times.npz") as kept:
            np.testing.assert_array_equal(times, kept["times"])


def test_an_upload_never_replaces_the_features(cc, handle):
    cc.upload_raw_array("kept/x", X)
    with pytest.raises(UserError, match="s3://speech/kept/x is of another program or version"):
        write_array(handle, "kept/x", X[:, :2], "z", "state")
    np.testing.assert_array_equal(read_array(handle, "kept/x"), X)
    assert write_array(handle, "kept/z", X, "z", "a state")
    assert write_array(handle, "kept/z", X, "z", "another")
    assert not write_array(handle, "kept/z", X, "z", "another")


def test_an_upload_never_replaces_the_encodings_of_another_model(handle, tmp_path):
    write_tree(tmp_path / "features", {"a": 30})
    command = ["encode", "--features", str(tmp_path / "features"), "--upload", "s3://speech/one"]
    for seed in (0, 1):
        torch.manual_seed(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        saved(folder, build_model(inner_size=8, n_encoder=2, n_decoder=2))
        more = ["--model", str(folder / "best.pth"), "--out", str(folder / "z")]
        if seed == 0:
            assert main([*command, *more]) == 0
            before = read_array(handle, "one/a")
        else:
            with pytest.raises(UserError, match=r"one/a is encodings by model \w+ as float32, and"):
                main([*command, *more])
    np.testing.assert_array_equal(read_array(handle, "one/a"), before)


def test_an_upload_beside_features_writes_nothing(cc, handle, tmp_path):
    cc.upload_raw_array("beside/a", X)
    write_tree(tmp_path / "features", {"a": 30})
    saved(tmp_path, build_model(inner_size=8, n_encoder=2, n_decoder=2))
    command = ["encode", "--features", str(tmp_path / "features"), "--out", str(tmp_path / "z")]
    command += ["--model", str(tmp_path / "best.pth"), "--upload", "s3://speech/beside"]
    with pytest.raises(UserError, match="beside/a is of another program or version"):
        main(command)
    assert [item.key for item in handle.objects.filter(Prefix="beside/")] == ["beside/a"]


@pytest.mark.parametrize("where", ["speech/z", "s3://", "gs://speech/z"])
def test_the_bucket_for_encodings_is_opened_before_anything_is_encoded(tmp_path, where):
    write_tree(tmp_path / "features", {"a": 30})
    saved(tmp_path, build_model(inner_size=8, n_encoder=2, n_decoder=2))
    command = ["encode", "--model", str(tmp_path / "best.pth"), "--out", str(tmp_path / "z")]
    command += ["--features", str(tmp_path / "features"), "--upload", where]
    with pytest.raises(UserError, match=f"must be s3://BUCKET or s3://BUCKET/PREFIX, got {where}"):
        main(command)
    assert not (tmp_path / "z").exists()
