"""Configuration: defaults, TOML, overrides, and one clear line for every mistake."""

import tomllib

import pytest

from chordflow import filters, models
from chordflow.config import (
    RUN_ONLY,
    Config,
    ConfigError,
    DataConfig,
    keys,
    load_config,
    make_clock,
    parse_flow,
    refuse_run_only,
)
from chordflow.record import to_toml


def test_the_default_is_the_main_job():
    config = load_config(None)
    assert config == Config()
    assert (config.data.name, config.data.samples, config.data.stiff_samples) == ("digits", 200, 100)
    assert config.flows == ("straight", "adapted", "standard", "interpolated(0.5)")
    assert config.atol is None, "an absolute tolerance of its own would stay where rtol is lowered"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.name=wine", "flows=power(0.5),straight", "rtol=1e-9", "model.widths=[8, 8]", "seed=3"],
        ["flows=along(my.paths:bent),along( my.paths:bent , 1e1 )", "loss=my.losses:huber", "atol=10"],
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


def test_few_samples_are_all_for_stiff_flows():
    assert load_config(None, ["data.samples=50"]).data.stiff_samples is None
    assert load_config(None, ["data.samples=50", "data.stiff_samples=20"]).data.stiff_samples == 20


def test_flow_names_are_the_functions():
    assert parse_flow("interpolated( 0.25 )").flow(1e-6).filter == filters.Interpolated(0.25, 1e-6)
    assert parse_flow("power(1)").flow(1e-5).filter == filters.Power(1.0, 1e-5)
    assert isinstance(parse_flow("standard").flow(1e-6).filter, filters.Transpose)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("adapted()", "adapted"),
        (" straight ", "straight"),
        ("interpolated( .50)", "interpolated(0.5)"),
        ("interpolated(0)", "interpolated(0)"),
        ("power(1.0)", "power(1)"),
        ("along( a.b:c )", "along(a.b:c)"),
        ("along(a:c,0.0)", "along(a:c)"),
        ("along(a:c, 1e1)", "along(a:c,10)"),
    ],
)
def test_a_flow_has_one_spelling(text, name):
    # It is the key of summaries and the name of a file: two spellings would be two flows, or one that overwrites.
    assert str(parse_flow(text)) == name
    assert parse_flow(name) == parse_flow(text)
    assert load_config(None, [f"flows={text}"]).flows == (name,)


def test_a_clock_is_made_of_its_samples_alone():
    assert make_clock("s", 0) is None  # no other clock is tried on the way: they refuse 0 samples
    with pytest.raises(ValueError, match="number of samples"):
        make_clock("interpolation", 0)


def test_verify_refuses_what_it_would_ignore():
    for key in RUN_ONLY:
        table: dict = {}
        inner = table
        *parents, last = key.split(".")
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = 3
        with pytest.raises(ConfigError, match=f"^{key} = 3: chordflow verify"):
            refuse_run_only(table)
    refuse_run_only(
        {"data": {"samples": 3}, "model": {"widths": 4}, "loss": "a:b", "rtol": 1e-6, "eps": 1e-4, "seed": 1}
    )


MISTAKES = [
    ("data.sampels=3", "data.sampels = 3: unknown key, did you mean data.samples?"),
    ("rtoll=1", "rtoll = 1: unknown key, did you mean rtol?"),
    ("flows=strait", "did you mean straight?"),
    ("flows=", "expected at least one of"),
    ("flows=interpolated", "expected interpolated"),
    ("flows=interpolated(2)", "expected interpolated(number in [0, 1])"),
    ("flows=straight(1)", "straight takes no argument"),
    ("flows=3", "expected a list of flows"),
    ("flows=straight,straight", "flows: straight is there 2 times, expected each flow once"),
    ("flows=adapted,power(0.5),adapted()", "flows: adapted is there 2 times"),
    ("flows=interpolated(0.5),interpolated(.5)", "flows: interpolated(0.5) is there 2 times"),
    ("flows=interpolated(0.5,1)", "expected interpolated(number in [0, 1])"),
    ("flows=along", "expected along(package.module:function)"),
    ("flows=along(bent)", "expected along(package.module:function)"),
    ("flows=along(a:b,-1)", "or with a gain ≥ 0, along(package.module:function, 10)"),
    ("flows=along(a:b,1,2)", "expected along(package.module:function)"),
    ("loss=l2", "loss = 'l2': unknown, expected one of squared_error, cross_entropy, package.module:function"),
    ("loss=losses:", "loss = 'losses:': unknown"),
    ("data.stiff_samples=0", "data.stiff_samples = 0: expected an integer of at least 1"),
    ("clock=t", "clock = 't': unknown"),
    ("rtol=-1", "rtol = -1.0: expected a number in (0, 1)"),
    ("atol=nan", "atol = nan: expected a positive number"),
    ("atol=inf", "atol = inf: expected a positive number"),
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
    assert all(f"model.{name}" in listed for name in models.OPTIONS)
    assert set(RUN_ONLY) < listed
    assert set(keys(RUN_ONLY)) == listed - set(RUN_ONLY)
