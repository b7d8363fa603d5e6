"""W&B's client: its modes, settings, questions and errors."""

import contextlib
import netrc
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from emaae.runs import read
from emaae.system.errors import UserError

# wandb's own 90 s are long for someone who waits; what is logged offline is not lost.
INIT_TIMEOUT_S = 20
STOP_TIMEOUT_S = 10  # of a run that was told to end
# How long the end of a run waits for uploads; what is missing then is kept and uploaded later.
FINISH_TIMEOUT_S = 300


def mode_of(asked: str) -> str:
    """online, offline or disabled, for a value of --wandb.

    auto is online when a key is configured (WANDB_API_KEY or a netrc file) and offline otherwise;
    WANDB_MODE, when set, decides instead. Raises UserError.
    """
    if asked != "auto":
        return asked
    mode = os.environ.get("WANDB_MODE") or ("online" if _key_configured() else "offline")
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
    if mode not in ("online", "offline", "disabled"):
        raise UserError(f"WANDB_MODE must be online, offline or disabled, got {mode!r}")
    return mode


def _key_configured() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return netrc.netrc(path).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def init(folder: Path, mode: Any, **given: Any) -> Any:
    """Call `wandb.init` for the run of a folder, quietly and with our limits on waiting.

    Its files lie in `folder`/wandb. given: other arguments of `wandb.init`.
    """
    import wandb

    settings: dict[str, Any] = {
        "silent": True,
        "init_timeout": float(os.environ.get("WANDB_INIT_TIMEOUT", INIT_TIMEOUT_S)),
        "finish_timeout": float(os.environ.get("WANDB_FINISH_TIMEOUT", FINISH_TIMEOUT_S)),
        "finish_timeout_raises": True,
    }
    settings |= given.pop("settings", {})
    return wandb.init(dir=str(folder), mode=mode, settings=wandb.Settings(**settings), **given)


@contextlib.contextmanager
def wandb_environment(folder: Path, mode: str) -> Iterator[None]:
    """Set what wandb reads from the environment alone, for one run and not for the next one."""
    ours = {
        # Read when wandb is imported: set later, an "offline" client asks the network twice.
        "WANDB_MODE": mode,
        # Artifacts of an offline run are remembered by absolute path: keep them with the run.
        "WANDB_DATA_DIR": str(folder.resolve() / "wandb" / "data"),
    }
    before = {name: os.environ[name] for name in ours if name in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        os.environ.update(before)


def public_api() -> Any:
    """W&B's client for queries. Raises UserError when it cannot be reached or refuses the key."""
    import wandb

    try:
        return wandb.Api(timeout=INIT_TIMEOUT_S)
    except (wandb.Error, OSError) as error:
        raise UserError(
            f"W&B cannot be asked ({one_line(error)[:200]}): check the network and `wandb login`"
        ) from None


def stop_requested(path: str) -> bool:
    """Whether the server wants the run ENTITY/PROJECT/RUN stopped; False without an answer."""
    import wandb

    entity, project, run_id = path.split("/")
    question = (
        "query Stopped($entity: String!, $project: String!, $run: String!) "
        "{ project(name: $project, entityName: $entity) { run(name: $run) { stopped } } }"
    )
    named = {"entity": entity, "project": project, "run": run_id}
    try:
        # The client has no public method for it; a run polls the same field.
        answer: Any = wandb.Api(timeout=STOP_TIMEOUT_S)._service_api.execute_graphql(
            question, named
        )
        return bool(answer["project"]["run"]["stopped"])
    except Exception:  # a run ends whatever the server or a later client does
        return False


def sweep_config(path: str) -> Mapping[str, Any]:
    """The content of the sweep's file; {} without an answer, with which a run goes on."""
    try:
        return public_api().sweep(path).config
    except Exception:
        return {}


def varying_names(sweep: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of those parameters of a sweep file that have more than one value."""
    return tuple(
        name
        for name, spec in (sweep.get("parameters") or {}).items()
        if isinstance(spec, Mapping) and "value" not in spec and len(spec.get("values", "..")) > 1
    )


def get_or_none(ask: Callable[[str], Any], name: str) -> Any | None:
    """The object of this name on W&B, or None. Raises UserError without an answer.

    ask: a method of the client, such as `public_api().artifact`.
    """
    import wandb

    try:
        return ask(name)
    except (wandb.Error, ValueError) as error:
        # W&B has one error for a name that is not there and for a server that is not.
        if isinstance(error, ValueError) or "not found" in str(error):
            return None
        raise UserError(
            f"W&B did not say whether {name} is there ({one_line(error)[:200]})"
        ) from None


def is_local(ref: str | os.PathLike) -> bool:
    """Whether a reference means a local folder, and not a path on W&B.

    W&B's client makes folders ENTITY/PROJECT/RUN where it is started: such a folder is ours if it
    holds runs, or if W&B cannot be reached anyway.
    """
    if str(ref).startswith("wandb:") or not os.path.isdir(ref):
        return False
    there = len(str(ref).split("/")) in (2, 3) and mode_of("auto") == "online"
    return not there or read.holds_runs(Path(ref))


def split_path(path: str) -> tuple[str, str, str | None]:
    """Entity, project and what follows them, None when nothing does. Raises UserError."""
    parts = path.strip("/").split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UserError(
            f"{path!r} is neither a folder here nor a path on W&B: expected ENTITY/PROJECT or "
            "ENTITY/PROJECT/SWEEP"
        )
    return parts[0], parts[1], parts[2] if len(parts) == 3 else None


def one_line(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
