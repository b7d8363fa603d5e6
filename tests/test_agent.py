"""What W&B's agent passes: a sweep's parameters, or the whole config of a preempted run."""

import json

import pytest
import yaml

from emaae import command_line
from emaae.config import Config
from emaae.system.errors import UserError
from emaae.tracking import agent

POINT = {"alpha": 0.3, "seed": 7, "update": True}
# As the server hands it over: all settings, what the run wrote since, and the client's own keys.
REST = {
    "train_dir": "/elsewhere/train",
    "val_dir": "/elsewhere/val",
    "out_dir": "/elsewhere/runs",
    "wandb": "online",
    "demo": False,
    "data": {"train": {"utterances": 3}},
    "versions": {"torch": "2"},
    "git_commit": "0" * 40,
    "schedule": "cosine",
    "_wandb": {"t": {"1": [1]}},
}


@pytest.fixture
def hand(monkeypatch, tmp_path):
    """Pass a config in a file, as the agent does; returns the command line of the agent."""

    def hand(given: dict) -> list[str]:
        path = tmp_path / "config.yaml"
        entries = {name: {"desc": None, "value": value} for name, value in given.items()}
        path.write_text(yaml.safe_dump({"wandb_version": 1} | entries))
        monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(path))
        return [f"--{name}={value}" for name, value in given.items()]

    return hand


def test_without_an_agent_no_values_are_passed(monkeypatch):
    monkeypatch.delenv("WANDB_SWEEP_PARAM_PATH", raising=False)
    assert agent.sweep_values() == {}
    assert agent.without_agent_flags(["--alpha=0.1", "{}"]) == ["--alpha=0.1", "{}"]


def test_parameters_reach_the_config_unchanged_and_an_unknown_one_is_refused(hand):
    argv = hand(POINT)
    assert agent.sweep_values() == POINT
    assert agent.without_agent_flags(argv) == argv
    hand(POINT | {"alhpa": 1})
    with pytest.raises(UserError, match="alhpa"):
        command_line.from_args([], sweep=agent.sweep_values())


def test_a_whole_config_sets_only_what_a_sweep_may_set(hand):
    argv = hand(POINT | REST)
    assert agent.sweep_values() == POINT
    here = ["--out_dir=here", "--train_dir=a", "--val_dir=b"]
    config = command_line.from_args(
        agent.without_agent_flags(here + argv), sweep=agent.sweep_values()
    )
    assert (config.alpha, config.seed, config.update) == (0.3, 7, True)
    assert (config.out_dir, config.train_dir, config.wandb) == ("here", "a", "auto")


def test_a_flag_that_command_and_agent_both_give_is_kept_once(hand):
    argv = hand(POINT | REST)
    command = ["--out_dir=/elsewhere/runs", *argv]  # the same flag as the agent passes
    assert agent.without_agent_flags(command).count("--out_dir=/elsewhere/runs") == 1


def test_the_command_of_a_sweep_may_have_flags_with_separate_values_and_files(hand):
    argv = hand(POINT | REST | {"model_config": "/elsewhere/m.json"})
    command = ["--out_dir", "here", "--train_dir", "a", "--val_dir", "b"]
    assert agent.without_agent_flags([*command, "--model_config", "m.json", *argv])[:8] == [
        *command,
        "--model_config",
        "m.json",
    ]
    assert "--model_config=~/m.json" in agent.without_agent_flags(
        ["--model_config=~/m.json", *argv]
    )
    config = command_line.from_args(
        agent.without_agent_flags([*command, *argv]), sweep=agent.sweep_values()
    )
    assert (config.out_dir, config.train_dir, config.alpha) == ("here", "a", 0.3)


def test_each_format_in_which_agents_pass_a_config_is_read(hand, tmp_path):
    whole = POINT | REST
    hand(whole)
    (tmp_path / "args.json").write_text(json.dumps(whole))
    for argv in (
        [f"{name}={value}" for name, value in whole.items()],  # args_no_hyphens
        [json.dumps(whole)],  # args_json
        [str(tmp_path / "args.json")],  # args_json_file
        [f"--{n}" if v is True else f"--{n}={v}" for n, v in whole.items() if v is not False],
        [word for name, value in whole.items() for word in (f"--{name}", str(value))],
    ):
        config = command_line.from_args(["--out_dir=here", *agent.without_agent_flags(argv)])
        assert (config.alpha, config.seed, config.update) == (0.3, 7, True)
        assert (config.out_dir, config.train_dir) == ("here", None)


def test_a_config_that_an_agent_passes_back_is_unchanged(hand):
    before = Config.from_mapping({"alpha": 0.3, "norm": "layer", "epochs": 7})
    argv = hand(vars(before) | REST)
    again = command_line.from_args(agent.without_agent_flags(argv), sweep=agent.sweep_values())
    assert vars(again) == vars(before)


def test_an_argument_of_broken_json_is_refused(hand):
    hand(POINT | REST)
    with pytest.raises(UserError, match="'{alpha' is not a JSON object of flags"):
        agent.without_agent_flags(["{alpha"])


@pytest.mark.parametrize("content", ["- 1", "{", "\x00"])
def test_a_file_that_no_agent_wrote_prints_one_line(monkeypatch, tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(path))
    with pytest.raises(UserError, match="WANDB_SWEEP_PARAM_PATH=.*cannot be read"):
        agent.sweep_values()
