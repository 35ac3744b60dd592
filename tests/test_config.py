"""Configuration: defaults, TOML, overrides, and one clear line for every mistake."""

import tomllib

import pytest

from chordflow import filters
from chordflow.config import Config, ConfigError, DataConfig, keys, load_config, parse_flow
from chordflow.record import to_toml


def test_the_default_is_the_main_job():
    config = load_config(None)
    assert config == Config()
    assert (config.data.name, config.data.samples, config.data.stiff_samples) == ("digits", 200, 100)
    assert config.flows == ("straight", "adapted", "standard", "interpolated(0.5)")


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.name=wine", "flows=power(0.5),straight", "rtol=1e-9", "model.widths=[8, 8]", "seed=3"],
        ["t1=4", "clock=log", "loss=cross_entropy", "data.smoothing=0.1", "out=a b/c", "model.name=my.mod:net"],
    ],
)
def test_a_configuration_survives_toml(overrides):
    config = load_config(None, overrides)
    assert Config.from_dict(tomllib.loads(to_toml(config.to_dict()))) == config


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('rtol = 1e-5\nflows = ["standard"]\n[data]\nname = "diabetes"\nsamples = 7\n')
    config = load_config(path, ["data.samples=9", "eps=1e-4"])
    assert (config.data.name, config.data.samples, config.rtol, config.eps) == ("diabetes", 9, 1e-5, 1e-4)
    assert config.flows == ("standard",)
    assert config.data.stiff_samples is None, "defaults of the digits must not reach another data set"


def test_flow_names_are_the_functions():
    assert parse_flow("interpolated( 0.25 )", 1e-6).filter == filters.Interpolated(0.25, 1e-6)
    assert parse_flow("power(1)", 1e-5).filter == filters.Power(1.0, 1e-5)
    assert isinstance(parse_flow("standard", 1e-6).filter, filters.Transpose)


MISTAKES = [
    ("data.sampels=3", "data.sampels = 3: unknown key, did you mean data.samples?"),
    ("rtoll=1", "rtoll = 1: unknown key, did you mean rtol?"),
    ("flows=strait", "did you mean straight?"),
    ("flows=", "expected at least one of"),
    ("flows=interpolated", "expected interpolated"),
    ("flows=interpolated(2)", "expected interpolated(number in [0, 1])"),
    ("flows=straight(1)", "straight takes no argument"),
    ("flows=3", "expected a list of flows"),
    ("loss=l2", "loss = 'l2': unknown, expected one of squared_error, cross_entropy"),
    ("clock=t", "clock = 't': unknown"),
    ("rtol=-1", "rtol = -1.0: expected a number in (0, 1)"),
    ("atol=nan", "atol = nan: expected a number in (0, 1)"),
    ("rtol=small", "rtol = 'small': expected a number"),
    ("eps=1", "eps = 1.0: expected a number in (0, 1)"),
    ("t1=0", "t1 = 0.0: expected a positive number"),
    ("seed=1.5", "seed = 1.5: expected an integer"),
    ("seed=-1", "seed = -1: expected an integer of at least 0"),
    ("seed=true", "seed = True: expected an integer"),
    ("saves=1", "saves = 1: expected an integer of at least 2"),
    ("max_steps=0", "max_steps = 0: expected an integer of at least 1"),
    ("data=3", "data = 3: expected a table"),
    ("model=mlp", "model = 'mlp': expected a table"),
    ("data.samples=many", "data.samples = 'many': expected an integer"),
    ("seed.x=1", "seed = {'x': 1}: expected an integer"),
    ("samples", "expected key=value"),
    ("=3", "expected key=value"),
]


@pytest.mark.parametrize(("override", "text"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_one_line_that_names_key_value_and_expectation(override, text):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_no_toml(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = [")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(tmp_path / "bad.toml")


def test_the_help_lists_every_key():
    listed = set(keys())
    assert {"rtol", "data.name", "model.widths", "out", "flows", "clock"} <= listed
    assert all(f"data.{name}" in listed for name in DataConfig.__dataclass_fields__)
