"""The values that W&B's agent hands to the run that it starts.

A run that was preempted is queued again with its whole config: besides the sweep's parameters the
other settings of the first attempt, what was written into the config since, and W&B's private keys,
all of it in a file and on the command line. What a sweep may set is taken, and the rest is left:
where and how to run is each machine's own.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from emaae.config import Config
from emaae.system.errors import UserError
from emaae.system.files import read_json, read_text

# Entries that only a run's config has: they tell it from the parameters of a sweep.
RUN_ONLY_KEYS = ("data", "versions", "git_commit")


def agent_config() -> dict[str, Any]:
    """All that the agent hands to this run, by name; {} for a run without an agent. UserError."""
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if not path:
        return {}
    try:
        found = yaml.safe_load(read_text(path)) or {}
        return {
            name: entry["value"] if isinstance(entry, dict) and "value" in entry else entry
            for name, entry in found.items()
            if name != "wandb_version"
        }
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(
            f"WANDB_SWEEP_PARAM_PATH={path} cannot be read as W&B's agent writes it ({error}): "
            "start the run by `wandb agent`, or unset the variable"
        ) from None


def sweep_values() -> dict[str, Any]:
    """The values that the sweep chose for this run."""
    given = agent_config()
    left = _not_sweepable(given)
    return {name: value for name, value in given.items() if name not in left}


def without_agent_flags(argv: Sequence[str] | None = None) -> list[str]:
    """A command line without what the agent put there of a config, in any of its ways."""
    argv = list(sys.argv[1:] if argv is None else argv)
    left = _not_sweepable(agent_config())
    kept: list[str] = []
    for token, before, after in zip(argv, ["", *argv], [*argv[1:], ""]):
        name, equals, value = token.lstrip("-").partition("=")
        # A flag and its value may be two words in the sweep's own `command`.
        alone = token.startswith("--") and (not after or after.startswith("-"))
        is_value = before.startswith("--") and "=" not in before
        is_file = token.endswith(".json") and not token.startswith("-") and not is_value
        if name in left and (value == str(left[name]) if equals else alone):
            del left[name]  # once: what is said by the sweep's own `command` stays
        elif left and (token.startswith("{") or is_file):
            found = json.loads(token) if token.startswith("{") else read_json(Path(token))
            kept.append(json.dumps({n: value for n, value in found.items() if n not in left}))
        else:
            kept.append(token)
    return kept


def _not_sweepable(given: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a whole config that are no settings of a sweep; {} of parameters alone."""
    if not any(name in RUN_ONLY_KEYS or name.startswith("_") for name in given):
        return {}
    known = Config.sweepable()
    return {name: value for name, value in given.items() if name not in known}
