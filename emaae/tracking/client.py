"""W&B's client: its modes, settings, queries and errors."""

import configparser
import contextlib
import netrc
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from emaae.runs import read
from emaae.system.errors import UserError, reason

# Shorter than wandb's default of 90 s: a run that begins offline instead can be uploaded later.
INIT_TIMEOUT_S = 20
# How long the end of a run waits for uploads; the rest can be uploaded later.
FINISH_TIMEOUT_S = 300


def mode_of(asked: str) -> str:
    """online, offline or disabled, for a value of --wandb.

    auto is online when a key is configured (WANDB_API_KEY or a netrc file) and offline otherwise;
    WANDB_MODE, when set, decides instead. Raises UserError.
    """
    if asked != "auto":
        return asked
    # `wandb login --host` writes these settings.
    settings = configparser.RawConfigParser(default_section="default")
    folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    with contextlib.suppress(configparser.Error, UnicodeDecodeError):
        settings.read(os.path.expanduser(f"{folder}/settings"))
    host = settings.defaults().get("base_url", "https://api.wandb.ai")
    server = urlsplit(os.environ.get("WANDB_BASE_URL") or host).netloc
    has_key = bool(os.environ.get("WANDB_API_KEY"))
    with contextlib.suppress(OSError, UnicodeDecodeError, netrc.NetrcParseError):
        file = os.path.expanduser(os.environ.get("NETRC") or "~/.netrc")
        has_key = has_key or netrc.netrc(file).authenticators(server) is not None
    mode = os.environ.get("WANDB_MODE") or ("online" if has_key else "offline")
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
    if mode not in ("online", "offline", "disabled"):
        raise UserError(f"WANDB_MODE must be online, offline or disabled, got {mode!r}")
    return mode


def init(folder: Path, mode: Any, **given: Any) -> Any:
    """Call `wandb.init` quietly and with our timeouts; its files go into `folder`/wandb.

    An online run with the `id` of an earlier one continues it; an offline run replaces the files
    of an earlier one in the folder. given: other arguments of `wandb.init`.
    """
    if mode == "offline":
        # W&B cannot append to the files of an offline run: all rows are logged again.
        shutil.rmtree(folder / "wandb", ignore_errors=True)
    # wandb reads these from the environment alone. Without the mode, which it reads when it is
    # imported, an "offline" client sends two requests.
    os.environ["WANDB_MODE"] = mode
    # Offline runs refer to artifacts by absolute paths, so these lie in the run's folder.
    os.environ["WANDB_DATA_DIR"] = str(folder.resolve() / "wandb" / "data")
    import wandb

    settings = wandb.Settings(
        silent=True,
        init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_TIMEOUT_S)),
        finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", FINISH_TIMEOUT_S)),
        finish_timeout_raises=True,
        **given.pop("settings", {}),
    )
    given["resume"] = "allow" if mode == "online" else None
    return wandb.init(dir=str(folder), mode=mode, settings=settings, **given)


@contextlib.contextmanager
def user_errors(what: str, advice: str) -> Iterator[None]:
    """Inside, errors of W&B and the network become UserError, `what` (the reason): `advice`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # wandb and its libraries have no common error class
        raise UserError(f"{what} ({reason(error)}): {advice}") from None


def public_api() -> Any:
    """W&B's client for queries. Raises UserError when it cannot be reached or refuses the key."""
    import wandb

    with user_errors("W&B cannot be reached", "check the network and `wandb login`"):
        return wandb.Api(timeout=INIT_TIMEOUT_S)


def runs(path: str) -> list[Any]:
    """The runs of ENTITY/PROJECT[/SWEEP], without those of `promote`, by id. Raises UserError."""
    import wandb

    *_, sweep = split_path(path)
    where = path.strip("/")
    with user_errors(
        f"{path} is not a local folder and could not be read from W&B",
        "check the network and the path; on W&B it is ENTITY/PROJECT or ENTITY/PROJECT/SWEEP",
    ):
        api = wandb.Api(timeout=INIT_TIMEOUT_S)
        # Without `lazy=False` config and summary would be requested run by run.
        found = api.sweep(where).runs if sweep else api.runs(where, lazy=False)
        return sorted((r for r in found if r.job_type != "promote"), key=lambda run: run.id)


def download(artifact: Any, folder: Path) -> Path:
    """Put the files of an artifact into `folder`, and return it. Raises UserError."""
    with user_errors(f"{artifact.name} could not be downloaded from W&B", "check the network"):
        return Path(artifact.download(root=str(folder)))


def stop_requested(path: str) -> bool:
    """Whether the run ENTITY/PROJECT/RUN was stopped on the server; False without an answer."""
    query = (
        "query Stopped($entity: String!, $project: String!, $run: String!) "
        "{ project(name: $project, entityName: $entity) { run(name: $run) { stopped } } }"
    )
    variables = dict(zip(("entity", "project", "run"), path.split("/")))
    try:
        # The client has no public method for this field, which wandb polls during a run.
        answer: Any = public_api()._service_api.execute_graphql(query, variables)
        return bool(answer["project"]["run"]["stopped"])
    except Exception:  # whatever fails here must not keep a run from ending
        return False


def sweep_config(path: str) -> Mapping[str, Any]:
    """The content of the file of a sweep ENTITY/PROJECT/SWEEP; {} without an answer."""
    try:
        return public_api().sweep(path).config
    except Exception:
        return {}


def varying_names(sweep: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the parameters of a sweep file that have more than one value."""
    return tuple(
        name
        for name, spec in (sweep.get("parameters") or {}).items()
        # a parameter without `value` or `values` has a range
        if isinstance(spec, Mapping) and "value" not in spec and len(spec.get("values", [])) != 1
    )


def get_or_none(fetch: Callable[[str], Any], name: str) -> Any | None:
    """The object of this name on W&B, None without one. Raises UserError without an answer.

    fetch: a method of the client, such as `public_api().artifact`.
    """
    with user_errors(f"W&B did not answer whether {name} exists", "check the network"):
        try:
            return fetch(name)
        except Exception as error:
            # W&B raises the same error for a missing name and for a missing server.
            if isinstance(error, ValueError) or "not found" in str(error):
                return None
            raise


def is_local(ref: str | os.PathLike) -> bool:
    """Whether a reference means a local folder, and not a path on W&B.

    W&B's client makes folders ENTITY/PROJECT/RUN in the working directory. A folder with such a
    name is local if it holds runs, or if W&B is not online.
    """
    if str(ref).startswith("wandb:") or not os.path.isdir(ref):
        return False
    first, *rest = str(ref).split("/")
    like_a_path = first not in ("", ".", "..") and len(rest) in (1, 2)
    return read.holds_runs(Path(ref)) or not (like_a_path and mode_of("auto") == "online")


def split_path(path: str) -> tuple[str, str, str | None]:
    """Entity, project, and the third part (sweep or run) or None. Raises UserError."""
    parts = path.strip("/").split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UserError(
            f"{path!r} is neither a folder here nor a path on W&B: expected ENTITY/PROJECT or "
            "ENTITY/PROJECT/SWEEP"
        )
    return parts[0], parts[1], parts[2] if len(parts) == 3 else None
