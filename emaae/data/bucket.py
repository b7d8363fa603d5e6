"""Arrays in S3 buckets, in the format of cottoncandy's `upload_raw_array`; reads .npz too.

Credentials and endpoint come from the usual variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_PROFILE, AWS_ENDPOINT_URL, ... Messages never contain keys or passwords.
"""

import contextlib
import gzip
import hashlib
import io
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from emaae.data.features import FeatureFile, sort_distinct, without_npz
from emaae.data.npz import MAX_BYTES, load_npz, too_large
from emaae.system.errors import BadFile, UserError, needs_extra, shortened
from emaae.system.files import is_data

# A dtype of plain numbers in NumPy's notation: float, integer or bool. No objects or records.
NUMERIC_DTYPE = re.compile(r"[<>|=]?(f[248]|[iu][1248]|b1)")

# A file suffix starts with a letter, so `rate_1.2` has none and `x_config.json` has one.
FILE_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]*$")


def open_bucket(name: str) -> Any:
    """The bucket `name`, a resource of boto3. Raises UserError."""
    with needs_extra("bucket"):
        import boto3
        from botocore.config import Config
    # Fails after about 15 s when the endpoint is down, 30 s when it accepts but does not answer.
    timeouts = Config(
        connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3}
    )
    with _boto_errors(f"s3://{name}"):
        bucket = boto3.resource("s3", config=timeouts).Bucket(name)
        bucket.meta.client.head_bucket(Bucket=name)
    return bucket


def list_features(
    bucket: Any, prefix: str, recursive: bool
) -> tuple[list[FeatureFile], Mapping[str, tuple[int, str]]]:
    """The features under `prefix`, sorted, and the stamps of all objects there by key.

    A feature's path is the key, its stamp (bytes, ETag), and its identity the key relative to the
    prefix, without `.npz`. recursive: read sub-folders too. Times (`<name>_times`), objects with
    another suffix, and names that `is_data` rejects are not features. Raises UserError.
    """
    folder = f"{prefix.strip('/')}/".lstrip("/")
    query = {"Prefix": folder} if recursive else {"Prefix": folder, "Delimiter": "/"}
    with _boto_errors(f"s3://{bucket.name}/{folder}"):
        listed = bucket.objects.filter(**query)
        stamps = {item.key: (item.size, item.e_tag) for item in listed}
        names = {key: _identity(key[len(folder) :]) for key in stamps}
        found = [FeatureFile(name, key, stamps[key]) for key, name in names.items() if name]
        if not found:
            raise UserError(_no_features(bucket, folder, list(stamps), recursive))
    return sort_distinct(found), stamps


class Fetched(NamedTuple):
    """A file, or an object of a bucket: its path or address, content and metadata."""

    where: str
    content: bytes
    metadata: Mapping[str, str]


def fetch(bucket: Any, key: str, etag: str | None = None) -> Fetched:
    """The object `key`; several threads may call this. Raises UserError.

    etag: of the object when it was listed; an object that has changed since then is an error.
    """
    where = f"s3://{bucket.name}/{key}"
    with _boto_errors(where):
        # Threads may share a client of boto3, but not its resources.
        answer = bucket.meta.client.get_object(Bucket=bucket.name, Key=key)
        size = answer.get("ContentLength", 0)  # unknown if the server sends chunks
        content = b"" if size > MAX_BYTES else answer["Body"].read(None if size else MAX_BYTES + 1)
        if max(size, len(content)) > MAX_BYTES:
            raise BadFile(f"{where} {too_large('it', max(size, len(content)))}")
    if etag is not None and answer.get("ETag") != etag:
        raise UserError(f"{where} has changed since it was listed: start again")
    return Fetched(where, content, answer["Metadata"])


def array_in(fetched: Fetched, key: str = "features") -> np.ndarray:
    """The array in a file or object: a raw array, or the array `key` of an `.npz`. BadFile."""
    where, content, metadata = fetched
    if where.lower().endswith(".npz"):
        return load_npz(io.BytesIO(content), where, key)
    try:
        return _raw_array(content, metadata)
    except ValueError as error:
        raise BadFile(
            f"{where} {error}; upload it again with cottoncandy's upload_raw_array"
        ) from error


def write_array(bucket: Any, key: str, array: np.ndarray, made: str, state: str) -> bool:
    """Write an array as upload_raw_array does, unless it is there; returns whether it was written.

    made: describes the array and what made it. state: that of what it was made from. Both are
    stored as metadata, `state` as a digest. An object with the same state is left alone. Raises
    UserError, also for an object that was made by another program or is another array.
    """
    digest = hashlib.sha256(state.encode()).hexdigest()
    shape = ",".join(map(str, array.shape))
    metadata = {"dtype": array.dtype.str, "shape": shape, "compression": "gzip", "order": "C"}
    with _boto_errors(f"s3://{bucket.name}/{key}"):
        first = [item.key for item in bucket.objects.filter(Prefix=key).limit(1)]
        if first == [key]:
            old = bucket.Object(key).metadata
            was = old.get("made", "of another program or version")
            if was != made:
                raise UserError(
                    f"s3://{bucket.name}/{key} is {was}, and {made} were asked for: name another "
                    "prefix"
                )
            if old["state"] == digest:
                return False
        content = gzip.compress(array.tobytes(), mtime=0)
        bucket.Object(key).put(Body=content, Metadata=metadata | {"made": made, "state": digest})
    return True


def _identity(name: str) -> str:
    """The identity of the utterance whose features the object `name` holds; "" for others."""
    identity = without_npz(name)
    last = identity.rpartition("/")[2]
    other_suffix = identity == name and FILE_SUFFIX.search(last)
    wanted = last and not last.endswith("_times") and not other_suffix and is_data(name)
    return identity if wanted else ""


def _no_features(bucket: Any, folder: str, keys: list[str], recursive: bool) -> str:
    """The error message for a `folder` (it ends in / or is "") whose objects hold no features.

    keys: of the objects in the folder.
    """
    where = f"s3://{bucket.name}/{folder}"
    below = _folders(bucket, folder)
    if below and not recursive:
        return (
            f"{where} has no features directly in it, only folders ({below}): "
            "pass --recursive, or name one of them"
        )
    if keys:
        return (
            f"{where} holds {len(keys)} objects but no features, such as {keys[0]}: expected raw "
            "arrays without a suffix, or .npz files; name another prefix"
        )
    while not below and folder:
        folder = folder[: folder.rstrip("/").rfind("/") + 1]
        below = _folders(bucket, folder)
    hint = f"prefixes that exist: {below}" if below else "the bucket has no folders"
    return f"no objects under {where}, expected features: name another prefix ({hint})"


def _folders(bucket: Any, folder: str) -> str:
    """The names of the first folders in `folder`, joined; "" if there are none."""
    page = bucket.meta.client.list_objects_v2(Bucket=bucket.name, Prefix=folder, Delimiter="/")
    return shortened([entry["Prefix"].rstrip("/") for entry in page.get("CommonPrefixes", [])])


def _raw_array(content: bytes, metadata: Mapping[str, str]) -> np.ndarray:
    """The array from the bytes and the metadata of an object that upload_raw_array wrote.

    Raises ValueError, whose message continues a sentence that begins with the object's address.
    """
    metadata = {name.lower(): text for name, text in metadata.items()}
    missing = [name for name in ("dtype", "shape", "compression") if name not in metadata]
    if missing:
        raise ValueError(
            "is not a raw array (nor named .npz), expected metadata with dtype, shape and "
            f"compression, got no {' and no '.join(missing)}"
        )
    if not NUMERIC_DTYPE.fullmatch(metadata["dtype"]):
        raise ValueError(
            f"must hold plain numbers such as <f4, got dtype {metadata['dtype']!r} (objects are "
            "never unpickled); convert it to float32"
        )
    dtype, order = np.dtype(metadata["dtype"]), metadata.get("order", "C")
    if not re.fullmatch(r"(\d{1,18}(,\d{1,18}){0,31})?", metadata["shape"]):  # NumPy's limits
        raise ValueError(f"must have a shape such as 100,14, got {metadata['shape']!r}")
    shape = tuple(int(length) for length in metadata["shape"].split(",") if length)

    # cottoncandy writes order "F" for read-only arrays in C order, and then reads them scrambled.
    # Its versions for Python 2 wrote "F" for arrays in order F. Nothing tells the two apart, so "F"
    # is accepted only for shapes for which the order makes no difference.
    if order != "C" and sum(length > 1 for length in shape) > 1:
        raise ValueError(
            f"must be in order C, got {order!r}, which cottoncandy also writes for read-only "
            "arrays in order C; copy the array with numpy.array"
        )
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes > MAX_BYTES:
        raise ValueError(too_large("its array", n_bytes))
    array = _decompressed(content, metadata["compression"], n_bytes)
    if len(array) != n_bytes:
        got = "more" if len(array) > n_bytes else len(array)
        raise ValueError(
            f"must hold {n_bytes} bytes for {metadata['dtype']} of shape {shape}, by its metadata, "
            f"got {got}"
        )
    return np.ndarray(shape, dtype, bytearray(array))


def _decompressed(content: bytes, compression: str, n_bytes: int) -> bytes:
    """Decompress `content`; stops at n_bytes + 1, since n_bytes are expected. ValueError."""
    codec = compression.lower()
    # cottoncandy has other codecs too, and numcodecs one that unpickles.
    if codec not in ("gzip", "zstd", "false", "none"):
        raise ValueError(
            f"must be compressed with gzip or Zstd or uncompressed, got {compression!r}"
        )
    try:
        if codec == "gzip":
            return gzip.GzipFile(fileobj=io.BytesIO(content)).read(n_bytes + 1)
        if codec == "zstd":
            with needs_extra("bucket"):
                import numcodecs
            decode = numcodecs.Zstd().decode
            decode(content, out=bytearray(n_bytes))  # raises an error when the result is larger
            return bytes(decode(content))
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error) as error:
        raise ValueError(
            f"must hold {compression} data, by its metadata, got {len(content)} bytes that cannot "
            "be decompressed"
        ) from error
    return content


def endpoint() -> str:
    """The address of the S3 server for messages, without the user and password of the URL."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not url:
        return "the default endpoint (AWS_ENDPOINT_URL is not set)"
    return f"AWS_ENDPOINT_URL={url.rpartition('@')[2]}"


# Messages by error codes of servers and classes of errors: what is wrong, what was expected, what
# to do. The first entry that matches an error is used.
UNREACHABLE = (
    "cannot be reached at {endpoint} ({what}), expected an S3 endpoint: check the address, the "
    "network, and that the server is running"
)
REASONS = {
    ("NoSuchBucket", "404 HeadBucket"): "does not exist at {endpoint}, expected a bucket: check "
    "the spelling of --bucket and the endpoint",
    ("NoSuchKey", "404"): "does not exist, expected a raw array or an .npz: list the bucket again",
    ("refused",): "was refused by {endpoint} ({what}), expected credentials that allow listing and "
    "reading, and for --upload writing: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
    "AWS_DEFAULT_REGION",
    ("NoCredentialsError", "PartialCredentialsError"): "needs credentials, which are missing or "
    "incomplete: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL for a "
    "server that is not Amazon's",
    ("ParamValidationError", "EndpointResolutionError", "ValueError"): "at {endpoint} is not a "
    "valid address, expected a bucket name without spaces or slashes and a URL such as "
    "https://s3.example.org: check --bucket and the endpoint",
    ("ConnectionError", "HTTPClientError", "IncompleteReadError"): UNREACHABLE,
    ("BotoCoreError",): "cannot be opened ({what}), expected a working AWS configuration: check "
    "the AWS_* variables and the files under ~/.aws",
    ("Exception",): UNREACHABLE,
}


@contextlib.contextmanager
def _boto_errors(where: str) -> Iterator[None]:
    """Turn errors of boto about the address `where` into UserErrors.

    Messages quote only the code of a server's error, since its text may contain the request.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    of_boto = (BotoCoreError, ClientError, ResponseParserError)
    try:
        yield
    # RecursionError: botocore follows a redirect without a region, as from a web server, forever.
    except (*of_boto, OSError, RecursionError, ValueError) as error:
        what = type(error).__name__
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if isinstance(error, ClientError):
            what = error.response["Error"]["Code"]
            kinds |= {what, f"{what} {error.operation_name}"}
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:
                kinds.add("refused")
        reason = next(text for known, text in REASONS.items() if not kinds.isdisjoint(known))
        raise UserError(f"{where} {reason.format(endpoint=endpoint(), what=what)}") from error
