"""Whatever is typed, the command ends with an exit code and at most three lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repro.cli.main import cli
from torture import note, torture, tries

KEYS = ["paper", "scale", "arm", "seed", "seeds", "from", "model", "optimizer", "optimizer.lr"]
KEYS += ["training.epochs", "training", "n_jobs", "outputs", "hydra/launcher", "arms.x", "scales.x"]
VALUES = ["toy", "smoke", "sgd", "adam", "3", "-1", "[1,2]", "1,2", "null", "{a:1}", "'x y'", "???"]
VALUES += ["${seed}", "${", "range(1,3)", "interval(0,1)", "true", "1e400", "nan", "[training.x=1]"]
overrides = st.one_of(
    st.text(max_size=12),
    st.builds(
        lambda prefix, key, equals, value: prefix + key + equals + value,
        st.sampled_from(["", "", "", "+", "++", "~"]),
        st.sampled_from(KEYS) | st.text(max_size=6),
        st.sampled_from(["=", "=", "=", "", "@x=", "=="]),
        st.sampled_from(VALUES) | st.text(max_size=6),
    ),
)


@torture
@settings(
    max_examples=tries(40, 1000),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    typed=st.lists(overrides, max_size=3),
    has_paper=st.booleans(),
    options=st.lists(st.sampled_from(["--cfg", "-m", "--json"]), unique=True),
)
def test_any_command_line_ends_well(
    toy: Path, typed: list[str], has_paper: bool, options: list[str]
) -> None:
    paper = ["paper=toy"] if has_paper else []
    result = CliRunner().invoke(cli, ["run", "--dry-run", *options, "--", *paper, *typed])
    assert result.exit_code in (0, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if result.exit_code == 2:
        assert 1 <= len(result.stderr.strip().splitlines()) <= 3
    assert not list(toy.iterdir()), "a dry run writes nothing"
    note("fuzzed lines ended well", 1, 1)


@pytest.mark.parametrize("arguments", [["-z"], ["--sclae", "mini"], ["--config-dir", "/nowhere"]])
def test_unknown_options_are_usage_errors(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, ["run", *arguments])
    assert result.exit_code == 2
    assert "Traceback" not in result.output
