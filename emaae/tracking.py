"""How does Weights & Biases hear of a run? The only module of the package that imports wandb."""

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from emaae.config import Config
from emaae.errors import UserError
from emaae.metrics import DENSITY_EDGES

# wandb's own 90 s are long for someone who waits; what is logged offline is not lost.
INIT_TIMEOUT_S = 20


class Tracker:
    """A W&B run, or nothing at all with --wandb disabled."""

    def __init__(self, run: Any = None, how: str = "disabled"):
        self._run = run
        self.how = how

    def log(self, row: Mapping[str, Any]) -> None:
        """One row; it holds `epoch`, which is the axis of every chart."""
        if self._run is not None:
            self._run.log({name: _for_wandb(name, value) for name, value in row.items()})

    def update_config(self, values: Mapping[str, Any]) -> None:
        """Add what was found out after the start, such as the data's fingerprint."""
        if self._run is not None:
            self._run.config.update(dict(values))

    def finish(self, metrics: Mapping[str, Any], failed: bool) -> None:
        """Log the final metrics, `select/score` among them, and end the run."""
        if self._run is not None:
            self._run.log({name: _for_wandb(name, value) for name, value in metrics.items()})
            self._run.finish(exit_code=int(failed))


def start(config: Config, folder: Path) -> Tracker:
    """Begin a W&B run whose files lie in `folder`/wandb.

    --wandb auto is online when a key is configured (WANDB_API_KEY or a netrc file) and offline
    otherwise; WANDB_MODE, when set, decides instead. An online start that fails goes on offline,
    unless it was asked for by name. Raises UserError.
    """
    mode = config.wandb
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _key_configured() else "offline")
        mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
    if mode == "disabled":
        return Tracker()
    if mode not in ("online", "offline"):
        raise UserError(f"WANDB_MODE must be online, offline or disabled, got {mode!r}")
    # Read while wandb is imported: set later, an "offline" client still asks the network twice.
    before = os.environ.get("WANDB_MODE")
    os.environ["WANDB_MODE"] = mode
    import wandb

    def init(mode: str) -> Any:
        run = wandb.init(
            project=config.wandb_project,
            entity=config.wandb_entity,
            name=folder.name,
            dir=str(folder),
            config=config.asdict(),
            mode=mode,
            settings=wandb.Settings(silent=True, init_timeout=INIT_TIMEOUT_S),
        )
        run.define_metric("*", step_metric="epoch")
        return run

    try:
        if mode == "online":
            try:
                run = init("online")
                return Tracker(run, f"online at {run.url}")
            except (wandb.Error, OSError) as error:
                if config.wandb == "online":
                    raise
                print(f"W&B cannot be reached ({_line(error)}); going on offline", flush=True)
                os.environ["WANDB_MODE"] = "offline"
        run = init("offline")
    except (wandb.Error, ValueError) as error:
        raise UserError(
            f"W&B refuses the run ({_line(error)}): log in with `wandb login`, mend "
            "--wandb_project or --wandb_entity, or use --wandb offline or disabled"
        ) from None
    finally:
        # What was decided for this run is not for the next one in this process.
        os.environ.pop("WANDB_MODE")
        if before is not None:
            os.environ["WANDB_MODE"] = before
    return Tracker(run, f"offline; upload later with: wandb sync {Path(run.dir).parent}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _for_wandb(name: str, value: Any) -> Any:
    if name.endswith("density_log10"):
        import wandb

        return wandb.Histogram(np_histogram=(value, DENSITY_EDGES))
    return value


def _key_configured() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
