"""The package has the files of the project, and requires the same libraries."""

import re
import sys

from conftest import ROOT, program

import emaae
from emaae.system.files import find_packaged

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
READ = (".html", ".css", ".js", ".mplstyle")  # by programs, beside their modules
EXTRAS = PROJECT["project"]["optional-dependencies"]


def names(lines) -> set[str]:
    found = (re.match(r"[\w.-]+", line.strip()) for line in lines)
    return {match[0].lower().replace("_", "-") for match in found if match}


def test_extras_ask_for_what_the_requirements_files_do():
    def pinned(suffix: str) -> set[str]:
        lines = (ROOT / f"requirements{suffix}.txt").read_text().splitlines()
        return names(line for line in lines if not line.lstrip().startswith(("#", "-")))

    assert names(PROJECT["project"]["dependencies"]) == pinned("")
    for extra, wanted in EXTRAS.items():
        assert names(wanted) == pinned(f"-{extra}"), extra


def test_every_package_is_in_the_wheel():
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for folder in ("emaae", "analysis")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert packages | {"emaae.sweep_files"} == set(PROJECT["tool"]["setuptools"]["packages"])


def test_the_files_that_programs_read_are_in_the_wheel():
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for package in ("emaae", "analysis"):
        packed = {path for pattern in data[package] for path in (ROOT / package).glob(pattern)}
        read = {path for s in READ for path in (ROOT / package).rglob(f"*{s}")}
        # A page beside a module of its name is read by it.
        read |= {p for p in (ROOT / package).rglob("*.md") if p.with_suffix(".py").is_file()}
        assert packed == read


def test_the_version_is_the_same_everywhere():
    assert PROJECT["project"]["version"] == emaae.__version__
    assert f"version: {emaae.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {emaae.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_files_of_the_package_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_packaged("train.py") == ROOT / "train.py"
    assert find_packaged("sweeps/demo.yaml") == ROOT / "sweeps" / "demo.yaml"
    assert str(find_packaged("sweeps/nothing.yaml")) == "sweeps/nothing.yaml"
    (tmp_path / "train.py").write_text("")
    assert str(find_packaged("train.py")) == "train.py"


def test_a_sweep_runs_from_another_folder_and_is_reported(tmp_path):
    (tmp_path / "tiny.yaml").write_text(
        "# Does it run?\nmethod: grid\nmetric: {name: select/score}\n"
        "parameters: {alpha: {values: [0.1]}}\n"
    )
    flags = ("--epochs=1", "--inner_size=8", "--n_encoder=2", "--n_decoder=2", "--wandb=disabled")
    there = {"cwd": tmp_path, "PYTHONPATH": str(ROOT)}
    done = program("-m", "emaae", "sweep", "tiny.yaml", "--", *flags, **there)
    assert done.returncode == 0, done.stdout + done.stderr
    done = program("-m", "emaae", "report", "runs/tiny", **there)
    assert done.stdout == "report: runs/tiny/report.html\n", done.stderr


def test_a_shell_completes_verbs_and_flags(tmp_path):
    for line, expected in (("emaae reg", "regressors"), ("emaae sweep --jo", "--jobs")):
        answer = tmp_path / "answer"
        asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
        asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n"}
        program("-m", "emaae", **asked)
        assert answer.read_text().strip() == expected
