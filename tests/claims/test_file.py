from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.claims.file import check_arms, load_claims, parse_claims
from repro.claims.relations import RELATIONS
from repro.errors import UserError

SIDES = {"metric": "m", "arm": "a", "versus": "b"}
GREATER = {"relation": "greater", **SIDES}

EVERY_RELATION = """
collapse: {metric: test/accuracy, below: 0.3}
claims:
  - id: C3
    statement: DGC matches dense training where gradient dropping loses accuracy.
    where: Table 2
    paper: {value: "93.87 vs 93.75 %", setting: "ResNet-110, CIFAR-10", source: recalled}
    scales: [mini, full]
    checks:
      - {relation: greater, metric: m1, arm: a, versus: b, margin: 1e-2, percent: true}
      - {relation: less, metric: m2, arm: a, versus: b, scales: [mini]}
      - {relation: non_inferior, metric: m3, arm: a, versus: b, margin: 0.01, better: lower}
      - {relation: equivalent, metric: m4, arm: a, versus: b, margin: 0.01, interval: bootstrap}
      - {relation: at_least, metric: m5, arm: a, value: 0.9, on_collapse: 0.1}
      - {relation: at_most, metric: m6, arm: a, value: 0.9, at: {method.ratio: 0.1}}
      - {relation: within, metric: m7, arm: a, low: 0.1, high: 0.2, level: 0.9, min_seeds: 5}
      - {relation: ratio, metric: bytes, arm: a, versus: b, at_least: 277, deterministic: true}
      - {relation: spreads_more, metric: m8, arms: [a, b, c], versus: [a, b]}
      - {relation: ordered, metric: m9, arms: [a, b, c], direction: increasing}
      - {relation: trend, metric: m10, arms: {a: 1, b: 2, c: 4}, direction: decreasing}
      - {relation: slope, metric: m11, arm: a, over: model.width, low: -0.6, high: -0.4}
      - {relation: closes_gap, metric: m12, arm: a, start: b, goal: c, share: 0.5}
      - {relation: collapses_more, arm: a, versus: b}
      - {relation: collapses_less, arm: a, versus: c, collapse: {metric: loss, above: 9}}
      - {relation: identity, metric: m13, arm: a, versus: b, tolerance: 1e-6}
      - {relation: speed_up, metric: loss, arm: a, versus: b, at_least: 2}
      - {relation: greater, metric: m14, arm: a, versus: b, times: 5, floor: 0, statistic: median}
      - {relation: non_inferior, metric: "m@10", versus_metric: m15, arm: a, margin: 0.01}
  - id: C4
    statement: It keeps ImageNet accuracy.
    where: Table 3
    paper: {value: 76.15, source: read}
    scales: []
    why_not: needs ImageNet
    checks: []
"""


@pytest.fixture
def claims_yaml(tmp_path):
    path = tmp_path / "claims.yaml"

    def write(text: str):
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def complaint(raw) -> str:
    with pytest.raises(UserError) as caught:
        parse_claims(raw, "claims.yaml")
    return str(caught.value)


def test_every_relation_loads(claims_yaml):
    claims = load_claims(claims_yaml(EVERY_RELATION))
    checks = claims.claims[0].checks
    assert {check.relation for check in checks} == set(RELATIONS)
    assert checks[0].margin == 0.01  # type: ignore[attr-defined]  # YAML reads 1e-2 as text.
    assert claims.claims[1].paper.value == "76.15"
    assert len(claims.claims[0].checks_at("full")) == len(checks) - 1
    assert claims.claims[0].checks_at("smoke") == []
    for check in checks:
        assert check.compared
        assert check.claimed


@pytest.mark.parametrize(
    ("check", "chosen"),
    [
        (GREATER, {}),
        ({**GREATER, "margin": 0.1}, {"margin": 0.1}),
        ({**GREATER, "times": 5}, {"times": 5}),
        ({"relation": "non_inferior", **SIDES, "margin": 0}, {}),
        ({"relation": "equivalent", **SIDES, "margin": 0.1}, {"margin": 0.1}),
        ({"relation": "ratio", **SIDES, "at_most": 1}, {}),
        ({"relation": "speed_up", **SIDES, "at_least": 2}, {"at_least": 2}),
        ({"relation": "at_least", "metric": "m", "arm": "a", "value": 0}, {}),
        ({"relation": "at_most", "metric": "m", "arm": "a", "value": 3}, {"value": 3}),
        (
            {"relation": "within", "metric": "m", "arm": "a", "low": 0, "high": 1},
            {"low": 0, "high": 1},
        ),
        ({"relation": "identity", "metric": "m", "arm": "a", "value": 7}, {}),
        ({"relation": "identity", **SIDES, "tolerance": 0.1}, {"tolerance": 0.1}),
        (
            {
                "relation": "ordered",
                "metric": "m",
                "arms": ["a", "b"],
                "direction": "increasing",
                "margin": 2,
            },
            {"margin": 2},
        ),
    ],
)
def test_what_somebody_had_to_choose(build, check, chosen):
    (claim,) = build.claims_file(check).claims
    assert claim.checks[0].chosen_limits == chosen


def test_loading_is_light():
    code = (
        "import sys, repro.claims.file, repro.claims.verdicts; "
        "print([m for m in ('torch', 'scipy', 'numpy', 'lightning') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"margn": 1}, "checks[0]: unknown field 'margn'. Did you mean 'margin'?"),
        ({"relation": "graeter"}, "checks[0]: unknown relation 'graeter'. Did you mean 'greater'?"),
        ({"margin": "big"}, "checks[0].margin: should be a valid number"),
        ({"margin_because": ""}, "checks[0].margin_because: String should have at least 1 char"),
        ({"margin": -1}, "checks[0].margin: should be greater than or equal to 0"),
        ({"margin": float("inf")}, "checks[0].margin: should be a finite number"),
        ({"min_seeds": 1}, "checks[0].min_seeds: should be greater than or equal to 2"),
        ({"versus": "a"}, "checks[0]: the two sides are the same: say versus, versus_metric or"),
        ({"scales": ["mini", "huge"]}, "checks[0].scales[1]: 'huge' is no scale: smoke, mini"),
        ({"relation": "ratio"}, "checks[0]: say at_least, at_most or both"),
        ({"relation": "non_inferior"}, "checks[0].margin: is missing"),
    ],
)
def test_a_wrong_check(build, change, message):
    raw = {"claims": [build.claim({**GREATER, **change})]}
    assert complaint(raw).startswith(f"claims.yaml, claim C1, {message}")


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({"relation": "within", "arm": "a", "low": 2, "high": 1}, "low is greater than high"),
        (
            {"relation": "ordered", "arms": ["a", "a"], "direction": "increasing"},
            "arms: one is listed twice",
        ),
        (
            {"relation": "spreads_more", "arms": ["a", "b"], "versus": ["c", "c"]},
            "versus: two or more different arms are needed",
        ),
        (
            {"relation": "spreads_more", "arms": ["a", "b"], "versus": ["b", "a"]},
            "the two groups are the same",
        ),
        (
            {"relation": "ordered", "arms": ["a"], "direction": "increasing"},
            "arms: two or more are needed",
        ),
        (
            {"relation": "trend", "arms": {}, "direction": "increasing"},
            "arms: two or more are needed",
        ),
        (
            {"relation": "trend", "arms": {"a": 1, "b": 1}, "direction": "increasing"},
            "arms: two have the same x",
        ),
        (
            {"relation": "trend", "arm": "a", "direction": "increasing"},
            "say either arms (name: x) or arm with over",
        ),
        (
            {"relation": "slope", "arms": {"a": 0, "b": 1}, "low": 0, "high": 1},
            "arms: every x has to be positive for a log-log fit",
        ),
        (
            {"relation": "identity", "arm": "a", "value": 1, "versus": "b"},
            "say either value, or versus and/or versus_metric",
        ),
    ],
)
def test_a_check_at_odds_with_itself(build, check, message):
    raw = {"claims": [build.claim({"metric": "m", **check})]}
    assert complaint(raw) == f"claims.yaml, claim C1, checks[0]: {message}"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scales": ["full"]}, "why_not: is required, since mini is not among the scales"),
        ({"checks": []}, "checks: none is for scale 'mini'"),
        (
            {"checks": [{**GREATER, "scales": ["full"]}]},
            "checks[0].scales: 'full' is not among the claim's scales",
        ),
        (
            {"checks": [{**GREATER, "scales": ["full"]}], "scales": ["mini", "full"]},
            "checks: none is for scale 'mini'",
        ),
        ({"statment": "x"}, "unknown field 'statment'. Did you mean 'statement'?"),
        ({"checks": 3}, "checks: should be a list"),
        ({"checks": [3]}, "checks[0]: should be a mapping"),
        ({"checks": [{"metric": "m"}]}, "checks[0]: relation is missing: one of at_least,"),
        (
            {"paper": {"value": "1", "source": "guessed"}},
            "paper.source: 'guessed' is not one of 'read', 'recalled' or 'inferred'",
        ),
        (
            {"paper": {"value": "1", "source": "read", "settings": ""}},
            "paper: unknown field 'settings'. Did you mean 'setting'?",
        ),
    ],
)
def test_a_wrong_claim(build, fields, message):
    text = complaint({"claims": [build.claim(GREATER, **fields)]})
    assert text.removeprefix("claims.yaml, claim C1").lstrip(",: ").startswith(message)


def test_a_wrong_file(build):
    one = build.claim(GREATER)
    assert complaint({"claims": [one, one]}) == "claims.yaml, claims: id 'C1' is used twice"
    assert complaint({"claims": []}) == "claims.yaml, claims: the list is empty"
    assert complaint({"claims": [4]}) == "claims.yaml, claim number 1: should be a mapping"
    assert complaint(None) == "claims.yaml: should be a mapping with the key 'claims'"
    both = {"metric": "m", "below": 1, "above": 2}
    assert complaint({"claims": [one], "collapse": both}) == (
        "claims.yaml, collapse: say either below or above"
    )


def test_no_more_than_three_complaints(build):
    lines = complaint({"claims": [{"id": "C1"}]}).splitlines()
    assert lines == [
        "claims.yaml, claim C1, statement: is missing",
        "claims.yaml, claim C1, where: is missing",
        "claims.yaml, claim C1, paper: is missing",
        "and 2 more",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", ":2: not valid YAML: "),
        ("claims: 1\nclaims: 2\n", ":2: not valid YAML: key 'claims' is used twice"),
        ("a: 2020-99-99", ": not valid YAML: month must be in 1..12"),
        ("? [a]\n: 1", ":1: not valid YAML: found unhashable key"),
        ("a: !!python/name:os.system", ":1: not valid YAML: could not determine a constructor"),
        ("\0", ": not valid YAML: unacceptable character"),
        ("", ": should be a mapping with the key 'claims'"),
    ],
)
def test_not_yaml(claims_yaml, text, message):
    path = claims_yaml(text)
    with pytest.raises(UserError) as caught:
        load_claims(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match=r"nope.yaml: cannot be read: No such file or directory"):
        load_claims(tmp_path / "nope.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"\xe9")
    with pytest.raises(UserError, match="it is not UTF-8 text"):
        load_claims(tmp_path / "latin.yaml")


def test_arms_are_checked_against_the_papers(build, claims_yaml):
    claims = load_claims(claims_yaml(EVERY_RELATION))
    check_arms(claims, {"a", "b", "c"})
    claims = build.claims_file({**GREATER, "arm": "dropping", "versus": "dens"})
    with pytest.raises(UserError) as caught:
        check_arms(claims, ["dense", "dropping"])
    assert str(caught.value) == (
        "claims.yaml, claim C1, checks[0]: unknown arm 'dens'. Did you mean 'dense'?"
    )


FIELDS = sorted(
    {"claims", "collapse", "id", "statement", "where", "paper", "scales", "checks", "why_not"}
    | {field for model in RELATIONS.values() for field in model.model_fields}
)
WORDS = [*RELATIONS, "a", "b", "mini", "full", "read", "t", "", "increasing"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS)
KEYS = st.sampled_from(FIELDS) | st.text(max_size=3) | st.integers()
ANYTHING = st.recursive(
    LEAVES | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)
CHECK = st.fixed_dictionaries(
    {"relation": st.sampled_from([*RELATIONS, "greter"])},
    optional={name: ANYTHING for name in FIELDS if name != "relation"},
)
CLAIM = st.fixed_dictionaries(
    {"id": st.just("C1") | ANYTHING, "checks": st.lists(CHECK | ANYTHING, max_size=3)},
    optional={"scales": st.just(["mini"]) | ANYTHING, "paper": ANYTHING, "why_not": ANYTHING},
)


@settings(max_examples=150, deadline=None)
@given(ANYTHING | st.fixed_dictionaries({"claims": st.lists(CLAIM | ANYTHING, max_size=3)}))
def test_nothing_but_a_user_error_comes_out(raw):
    try:
        parse_claims(raw, "claims.yaml")
    except UserError as error:
        lines = str(error).splitlines()
        assert 1 <= len(lines) <= 4
        assert all(line.startswith(("claims.yaml", "and ")) for line in lines)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60) | ANYTHING.map(yaml.dump))
def test_no_text_breaks_the_loader(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError):
        load_claims(path)
