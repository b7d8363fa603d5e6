"""The values that W&B's agent passes to the run that it starts.

W&B queues a preempted run again with its whole config: the sweep's parameters, all other settings
of the first attempt, entries that the run added, and W&B's private keys. The agent passes them in a
file and on the command line. Settings that a sweep may set are used. The others are ignored, since
they depend on the machine.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from emaae.command_line import json_flags
from emaae.config import SWEEPABLE
from emaae.system.errors import UserError
from emaae.system.files import read_text

# Keys that a run's config has and the parameters of a sweep never have.
RUN_ONLY_KEYS = ("data", "versions", "git_commit")


def agent_config() -> dict[str, Any]:
    """The values that the agent passes, by name; {} without an agent. Raises UserError."""
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if not path:
        return {}
    try:
        found = yaml.safe_load(read_text(path)) or {}
        return {name: entry["value"] for name, entry in found.items() if name != "wandb_version"}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(
            f"WANDB_SWEEP_PARAM_PATH={path} cannot be read as W&B's agent writes it ({error}): "
            "start the run by `wandb agent`, or unset the variable"
        ) from None


def sweep_values() -> dict[str, Any]:
    """The values that the sweep chose for this run."""
    given = agent_config()
    ignored = _not_sweepable(given)
    return {name: value for name, value in given.items() if name not in ignored}


def without_agent_flags(argv: Sequence[str] | None = None) -> list[str]:
    """The command line without the ignored entries of a requeued run's config."""
    ignored = _not_sweepable(agent_config())
    words = list(sys.argv[1:] if argv is None else argv)
    kept: list[str] = []
    while words:
        flag = words.pop(0)
        name, equals, value = flag.lstrip("-").partition("=")
        following = []  # the value, if it is a separate word
        if flag.startswith("--") and not equals:
            if words and not words[0].startswith("--"):
                following = [words.pop(0)]
            value = following[0] if following else "True"
        if name in ignored and value == str(ignored[name]):
            del ignored[name]  # only once: the sweep's own `command` may have the same flag
        elif ignored and flag[:1] != "-" and (flag[:1] == "{" or flag.endswith(".json")):
            found = json_flags(flag)
            kept.append(json.dumps({n: v for n, v in found.items() if n not in ignored}))
        else:
            kept += [flag, *following]
    return kept


def _not_sweepable(given: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a requeued run's config that no sweep may set; {} for mere parameters."""
    if not any(name in RUN_ONLY_KEYS or name.startswith("_") for name in given):
        return {}
    return {name: value for name, value in given.items() if name not in SWEEPABLE}
