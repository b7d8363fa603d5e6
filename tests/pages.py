"""The commands of a page, run in order in a copy of the project."""

import re
import shlex
import shutil
from pathlib import Path

from conftest import ROOT
from forked import forked


def blocks(page: Path, language: str) -> list[str]:
    """The contents of the code blocks of a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def copy_project(root: Path) -> Path:
    """Put what the commands of a page need into the folder `root`; returns it.

    Its probe tries one penalty: the weak ones take a minute, and `test_probe.py` tests the choice.
    """
    for name in ("emaae", "analysis", "sweeps"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", root)
    probe = root / "analysis" / "probe.py"
    text, n_found = re.subn("^L2 = .*", "L2 = (1e-1,)", probe.read_text(), flags=re.MULTILINE)
    assert n_found == 1
    probe.write_text(text)
    return root


def follow(page: Path, root: Path, more=lambda argv: (), good=lambda argv: (0,), **variables: str):
    """Run every command of a page in `root`.

    more: arguments to append to those of a command; good: the exit statuses that it may have.
    """
    for line in "".join(blocks(page, "bash")).splitlines():
        interpreter, *argv = shlex.split(line)
        assert interpreter == "python", line
        done = forked(*argv, *more(argv), cwd=root, **variables)
        assert done.returncode in good(argv), f"{line}\n{done.stdout}\n{done.stderr}"
