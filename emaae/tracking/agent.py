"""The values that W&B's agent hands to the run that it starts.

A run that was preempted is queued again with its whole config: besides the sweep's parameters the
other settings of the first attempt, what was written into the config since, and W&B's private keys,
all of it in a file and on the command line. What a sweep may set is used, and the rest is ignored:
where and how to run depends on the machine.
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

# Entries that only a run's config has: they tell it from the parameters of a sweep.
RUN_ONLY_KEYS = ("data", "versions", "git_commit")


def agent_config() -> dict[str, Any]:
    """What the agent hands to this run, by name; {} without an agent. Raises UserError."""
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
    ignored = _not_sweepable(given)
    return {name: value for name, value in given.items() if name not in ignored}


def without_agent_flags(argv: Sequence[str] | None = None) -> list[str]:
    """The command line without the ignored entries of a requeued run's config, in any format."""
    ignored = _not_sweepable(agent_config())
    words = list(sys.argv[1:] if argv is None else argv)
    kept: list[str] = []
    while words:
        flag = words.pop(0)
        name, equals, value = flag.lstrip("-").partition("=")
        following = []  # the value, where it is a word of its own
        if flag.startswith("--") and not equals:
            if words and not words[0].startswith("--"):
                following = [words.pop(0)]
            value = following[0] if following else "True"
        if name in ignored and value == str(ignored[name]):
            del ignored[name]  # only once: what the sweep's own `command` contains stays
        elif ignored and flag[:1] != "-" and (flag[:1] == "{" or flag.endswith(".json")):
            found = json_flags(flag)
            kept.append(json.dumps({n: v for n, v in found.items() if n not in ignored}))
        else:
            kept += [flag, *following]
    return kept


def _not_sweepable(given: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a requeued run's config that no sweep may set; {} of parameters alone."""
    if not any(name in RUN_ONLY_KEYS or name.startswith("_") for name in given):
        return {}
    return {name: value for name, value in given.items() if name not in SWEEPABLE}
