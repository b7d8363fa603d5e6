"""The command line: casting, ranges, nearest names, and what several knobs mean together."""

import json

import pytest

from emaae import command_line
from emaae.config import KNOBS, SWEEPABLE, Config
from emaae.knobs import knobs_of
from emaae.system import files
from emaae.system.errors import UserError


def parse(*argv: str) -> Config:
    return command_line.from_args(list(argv))


def test_the_defaults_are_those_of_published_runs():
    config = parse()
    assert (config.inner_size, config.n_encoder, config.n_decoder) == (1024, 5, 3)
    assert (config.batch_sz, config.epochs, config.lr, config.alpha) == (32, 500, 0.001, 0.25)
    assert (config.optimizer, config.autoencoder_loss, config.sparse_loss) == ("adamw", "mse", "l1")
    assert config.penalty_scheduler == "step"
    assert not config.update
    assert not config.early_stop


@pytest.mark.parametrize(
    "spelling",
    [["--update"], ["--update=True"], ["--update", "true"], ["update=1"], ["--update=yes"]],
)
def test_a_switch_can_be_spelt_in_every_way_an_agent_does(spelling):
    assert parse(*spelling).update is True


def test_false_means_false():
    assert parse("--update=False", "--early_stop", "False").update is False
    assert parse("--early_stop", "--alpha=0.3").early_stop is True


@pytest.mark.parametrize("spelling", ["1e-4", "1.0e-4", "0.0001", " 1e-4 "])
def test_numbers_are_numbers_however_they_are_written(spelling):
    assert parse(f"--lr={spelling}").lr == 1e-4
    assert Config.from_mapping({"lr": spelling}).lr == 1e-4


def test_none_is_read_as_none_where_a_knob_may_be_none():
    assert parse("--alpha_epochs=None", "--run_name", "null").alpha_epochs is None
    assert parse("--norm=none").norm == "none"
    with pytest.raises(UserError, match="--epochs must be a whole number, got 'None'"):
        parse("--epochs=None")
    with pytest.raises(UserError, match="--epochs needs a value"):
        Config.from_mapping({"epochs": None})


def test_a_whole_number_may_be_given_as_a_float_without_a_fraction():
    assert Config.from_mapping({"batch_sz": 16.0}).batch_sz == 16
    assert parse("--batch_sz=16.0").batch_sz == 16
    for wrong in (16.5, True, "many"):
        with pytest.raises(UserError, match="--batch_sz must be a whole number"):
            Config.from_mapping({"batch_sz": wrong})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--alfa", "0.1"], "unknown flag --alfa; did you mean '--alpha'"),
        (["--innersize=3"], "unknown flag --innersize; did you mean '--inner_size'"),
        (["aplha=0.1"], "unexpected argument 'aplha=0.1'; did you mean 'alpha'?; flags look like"),
        (["modle_config=a.json"], "'modle_config=a.json'; did you mean 'model_config'"),
        (["--modle_config=a.json"], "unknown flag --modle_config; did you mean '--model_config'"),
        (["0.1"], "unexpected argument '0.1'"),
        (["[1]"], "unexpected argument '[1]'"),
        (["{"], "'{' is not a JSON object of flags"),
        (["none.json"], "none.json cannot be read: No such file"),
        (["--model_config", "none.json"], "none.json cannot be read: No such file"),
        (["--alpha"], "--alpha: expected one argument"),
        (["--alpha", "1.5"], "--alpha must be at least 0 and below 1, got 1.5"),
        (["--alpha", "1"], "--alpha must be at least 0 and below 1, got 1"),
        (["--alpha", "nan"], "--alpha must be a finite number, got 'nan'"),
        (["--alpha", "-1e-3"], "--alpha must be at least 0 and below 1, got -0.001"),
        (
            ["--sparse_loss", "l3"],
            "--sparse_loss must be one of l1, l1_decoder_norm, tv, tvu, got 'l3'",
        ),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--inner_size", "-4"], "--inner_size must be at least 1"),
        (["--n_encoder", "6"], "--n_encoder must be at least 2 and at most 5, got 6"),
        (["--lr", "0"], "--lr must be above 0, got 0"),
        (["--update=maybe"], "--update must be True or False, got 'maybe'"),
        (["--optimizer", "sgd"], "--optimizer must be one of adamw, adam, muon, got 'sgd'"),
        (["--activation=top"], "--activation must be one of relu, batch_topk, feature_topk, got"),
        (["--gate_frames", "4"], "--gate_frames must be odd, got 4"),
        (["--k_fraction", "1"], "--k_fraction must be above 0 and below 1, got 1.0"),
        (
            ["--activation=batch_topk", "--target_sparsity=1"],
            "--target_sparsity 1 leaves --activation batch_topk no values to keep: lower it, or",
        ),
        (["--eval_only"], "--eval_only needs --checkpoint"),
        (["--train_dir", "x"], "--val_dir is missing"),
        (["--bucket", "b"], "--bucket b needs --train_dir and --val_dir"),
        (["--test_dir="], "--test_dir must be text that is not empty, got ''"),
        (["--update", "--penalty_scheduler=geco", "--alpha=.97"], "0.97 is above --alpha_max 0.95"),
        (["--run_name", "a/b"], "must be a plain folder name"),
        (["--penalty_scheduler", "cosine"], "changes alpha only with --update"),
        (["--update", "--alpha", "0.97"], "--alpha 0.97 is above --alpha_max 0.95"),
        (
            ["--update", "--penalty_scheduler", "log_lambda", "--alpha", "0"],
            "--alpha 0 cannot start the log_lambda schedule",
        ),
    ],
)
def test_a_mistake_names_the_flag_the_value_and_the_remedy(argv, message):
    with pytest.raises(UserError) as error:
        parse(*argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_reported_even_without_an_error_number(monkeypatch):
    def fail(path):
        raise OSError("the share is gone")

    monkeypatch.setattr(files, "read_text", fail)
    with pytest.raises(UserError, match="a.json cannot be read: the share is gone"):
        parse("a.json")


def test_every_knob_is_a_flag_with_help(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, knob in KNOBS.items():
        assert f"--{name}" in text
        assert len(knob.text) > 5
    assert "encoder blocks [at least 2 and at most 5] (default: 5)" in text


def test_every_format_of_a_sweep_agents_arguments_gives_the_same_config(tmp_path):
    values = {"alpha": 0.1, "update": True, "penalty_scheduler": "cosine", "alpha_epochs": None}
    (tmp_path / "args.json").write_text(json.dumps(values))
    styles = [
        ["--alpha=0.1", "--update=True", "--penalty_scheduler=cosine", "--alpha_epochs=None"],
        ["alpha=0.1", "update=True", "penalty_scheduler=cosine", "alpha_epochs=None"],
        ["--alpha=0.1", "--update", "--penalty_scheduler=cosine"],
        [json.dumps(values)],
        [str(tmp_path / "args.json")],
    ]
    said = {parse(*style) for style in styles}
    assert said == {command_line.from_args([], sweep=values)}


def test_a_sweeps_values_override_flags_and_may_not_set_where_to_run():
    assert command_line.from_args(["--alpha=0.1", "--lr=1"], sweep={"alpha": "3e-1"}).alpha == 0.3
    for name in ("train_dir", "out_dir", "checkpoint", "wandb", "device", "run_name"):
        assert name not in SWEEPABLE
        with pytest.raises(UserError, match=f"a sweep may not set {name}"):
            command_line.from_args([], sweep={name: "x"})
    with pytest.raises(UserError, match="unknown parameter 'alhpa'; did you mean 'alpha'"):
        command_line.from_args([], sweep={"alhpa": 1})
    with pytest.raises(UserError, match="--alpha must be at least 0 and below 1, got 7"):
        command_line.from_args([], sweep={"alpha": 7})


def test_the_environment_sets_paths(monkeypatch):
    monkeypatch.setenv("EMAAE_TRAIN_DIR", "a")
    monkeypatch.setenv("EMAAE_VAL_DIR", "b")
    monkeypatch.setenv("EMAAE_RECURSIVE", "True")
    config = parse("--val_dir=c")
    assert (config.train_dir, config.val_dir, config.recursive) == ("a", "c", True)


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("EMAAE_ALPHA", "alpha cannot be set in the environment: give --alpha on the command line"),
        ("EMAAE_TRAN_DIR", "names no setting; did you mean 'EMAAE_TRAIN_DIR'"),
        ("EMAAE_QQQQQQQ", "names no setting; unset it"),
    ],
)
def test_an_emaae_variable_that_sets_no_flag_is_refused(monkeypatch, variable, says):
    monkeypatch.setenv(variable, "0.9")
    with pytest.raises(UserError, match=f"{variable} is set, and {says}"):
        parse()


def test_the_variables_of_wandb_count_where_ours_are_not_set(monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_ENTITY", "lab")
    assert (parse().wandb_project, parse().wandb_entity) == ("theirs", "lab")
    monkeypatch.setenv("EMAAE_WANDB_PROJECT", "ours")
    assert parse().wandb_project == "ours"
    assert parse("--wandb_project=flag").wandb_project == "flag"


def test_a_path_from_any_source_may_begin_with_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("EMAAE_TRAIN_DIR", "~/train")
    config = parse("--val_dir=~/val", '{"test_dir": "~/test"}', "--out_dir", "~/runs")
    assert config.train_dir == "/home/me/train"
    assert config.val_dir == "/home/me/val"
    assert config.test_dir == "/home/me/test"
    assert config.out_dir == "/home/me/runs"
    assert parse("--val_dir=v", "--run_name=~x").run_name == "~x", "a name is no path"
    paths = {name for name, knob in KNOBS.items() if knob.path}
    assert paths == {name for name in KNOBS if name.endswith("_dir")} | {
        "checkpoint",
        "model_config",
    }


def test_a_run_of_an_agent_has_demo_data_only_when_it_is_asked_to(monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    with pytest.raises(UserError, match="has no data directories.*EMAAE_DEMO=True"):
        parse()
    assert parse("--demo").uses_demo
    monkeypatch.setenv("EMAAE_DEMO", "True")
    assert parse().uses_demo
    with pytest.raises(UserError, match="--demo is the generated data: leave out --train_dir"):
        parse("--train_dir=a", "--val_dir=b")


def test_runs_of_an_agent_have_no_common_name(monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    with pytest.raises(UserError, match="--run_name x names all runs of a W&B agent alike"):
        parse("--demo", "--run_name=x")


def test_settings_of_schedules_without_a_schedule_give_a_warning():
    with pytest.warns(UserWarning, match="--alpha_epochs, --alpha_max: without effect, since --up"):
        parse("--alpha_max=0.6", "--alpha_epochs=1", "--geco_rate=0.5")


def test_a_wrong_value_in_the_environment_is_named_unless_a_flag_replaces_it(monkeypatch):
    monkeypatch.setenv("EMAAE_RECURSIVE", "maybe")
    with pytest.raises(UserError, match="EMAAE_RECURSIVE is set: --recursive must be True or Fal"):
        parse()
    assert parse("--recursive").recursive


def test_settings_are_known_without_their_source(monkeypatch):
    def getsource(of):
        raise OSError("could not get source code")

    monkeypatch.setattr("inspect.getsource", getsource)
    assert knobs_of(Config).keys() == KNOBS.keys()


def test_a_flag_without_a_value_does_not_take_the_next_setting():
    assert parse("--recursive", "alpha=0.1").alpha == 0.1
    assert parse("--update", '{"alpha": 0.3}').alpha == 0.3
    assert not parse("--update", "False").update


def test_the_ramp_is_fifteen_epochs_with_early_stopping_and_all_epochs_without():
    assert parse("--epochs", "80").ramp_epochs == 80
    assert parse("--epochs", "80", "--early_stop").ramp_epochs == 15
    assert parse("--epochs", "80", "--alpha_epochs", "4", "--update").ramp_epochs == 4


def test_without_update_alpha_is_constant():
    schedule = parse("--alpha", "0.3", "--epochs", "9").schedule()
    assert [schedule.alpha(t) for t in range(9)] == [0.3] * 9


def test_a_model_config_gives_the_architecture_and_what_contradicts_it_is_refused(tmp_path):
    path = tmp_path / "model_config.json"
    path.write_text(json.dumps({"inner_size": 768, "n_encoder": 4, "input_dim": 14, "lr": 9}))
    config = parse("--model_config", str(path))
    assert (config.inner_size, config.n_encoder, config.keep_loudness) == (768, 4, True)
    assert config.lr == 0.001
    with pytest.raises(UserError, match="--inner_size 32 contradicts .*model_config.json.* 768"):
        parse("--model_config", str(path), "--inner_size", "32")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "must hold a JSON object, got list"),
        ('{"inner_size": "big"}', "--inner_size must be a whole number, got 'big'"),
        ("{}", "has no inner_size: expected a model_config.json"),
        ('{"inner_size": 8, "input_dim": 80}', "input_dim must be 13 .* or 14 .*, got 80"),
        ('{"inner_size": 8, "norm": "group"}', "--norm must be one of"),
    ],
)
def test_a_model_config_with_wrong_values_is_refused(tmp_path, content, message):
    path = tmp_path / "model_config.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        parse("--model_config", str(path))


def test_a_resumed_run_keeps_what_its_weights_do_not_say(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.json").write_text(json.dumps({"norm": "batch", "inner_size": 64}))
    (tmp_path / "model_config.json").write_text(json.dumps({"inner_size": 64}))
    again = [f"--out_dir={tmp_path}", "--run_name=r", "--resume"]
    assert parse(*again).norm == "batch"
    for known in (f"--checkpoint={tmp_path / 'x.pth'}", "--norm=batch"):
        assert parse(*again, known).norm == "batch"


def test_a_model_that_was_selected_at_alpha_1_can_be_measured_though_not_trained(tmp_path):
    (tmp_path / "model_config.json").write_text('{"inner_size": 8, "alpha": 0.5}')
    (tmp_path / "metrics.json").write_text('{"select/alpha": 1.0}')
    checkpoint = f"--checkpoint={tmp_path / 'best.pth'}"
    assert parse("--eval_only", checkpoint).alpha == 1
    assert parse("--eval_only", checkpoint, "--alpha=0.3").alpha == 0.3
    assert parse(checkpoint).alpha == 0.25


def test_top_k_takes_any_target_sparsity_if_k_fraction_is_given():
    assert parse("--activation=batch_topk", "--target_sparsity=1", "--k_fraction=.1")
    assert parse(
        "--activation=feature_topk", "--target_sparsity=1", "--eval_only", "--checkpoint=x"
    )


def test_a_config_survives_conversion_to_plain_values():
    config = parse("--update", "--penalty_scheduler=geco", "--alpha_epochs=7", "--lr=2e-5")
    assert Config.from_mapping(json.loads(json.dumps(vars(config)))) == config
