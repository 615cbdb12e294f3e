"""A verdict must be proved, and says what it rests on."""

import math
from dataclasses import replace

import numpy as np
import pytest

from requant.errors import ConfigError, ContractError
from requant.gate import Decision, Differences, Floor, Rule, decide
from requant.statistics import paired_difference

NIGHT = 0.05 / 365
GUARD = Rule("guard", margin=0.01, reach=0.1)
TARGET = Rule("target", margin=0.0, reach=0.1, worth=0.005)


def compared(
    task: str, mean: float, spread: float, units: int = 400, seed: int = 0, **fields: object
) -> Differences:
    """Differences with exactly this mean and standard deviation."""
    drawn = np.random.default_rng([seed, units]).normal(size=units)
    values = (drawn - drawn.mean()) / drawn.std() * spread + mean
    made = Differences(task, "champion", "log_likelihood", tuple(values.tolist()))
    return replace(made, **fields)  # type: ignore[arg-type]


OLD = (GUARD, compared("old", 0.0, 0.02))
NEW = (TARGET, compared("new", 0.02, 0.04))


def reason(decision: Decision) -> str:
    return "\n".join(decision.reasons)


def test_a_gain_without_a_loss_is_promoted_and_says_why() -> None:
    found = decide([OLD, NEW], NIGHT)
    assert found.verdict == "promote"
    better, kept = found.reasons
    assert better.startswith("new against the champion: +0.02 (+0.01606 to +0.02394) on 400 units;")
    assert "it is better: e = 10^" in better and "of 7300" in better
    assert "a loss of 0.01 or of more than 0.1 on 5% is ruled out: e = " in kept
    assert [finding.state for finding in found.findings] == ["shown", "shown"]
    assert found.units_needed is None


def test_noise_of_no_mean_is_never_promoted_however_great_or_few() -> None:
    promoted = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        units, spread = int(rng.integers(1, 200)), float(10 ** rng.uniform(-4, 1))
        values = tuple((spread * rng.standard_t(3, units)).tolist())
        noise = Differences("new", "champion", "log_likelihood", values)
        promoted += decide([OLD, (TARGET, noise)], NIGHT).verdict == "promote"
    assert promoted == 0


def test_noise_never_hides_a_loss() -> None:
    """Today's gate passes what is not surely worse, so more noise passes more."""
    for spread in (0.001, 0.01, 0.1, 1.0):
        old = (GUARD, compared("old", -0.011, spread))
        assert decide([old, NEW], 0.05).verdict != "promote"


def test_five_points_worse_on_64_documents_is_never_promoted() -> None:
    """64 answers of which 60% are right, then 55%: today's gate passes three of four."""
    rng = np.random.default_rng(1)
    rule = Rule("guard", margin=0.02, reach=1.0)
    passed_today = 0
    for _ in range(200):
        values = ((rng.random(64) < 0.55) * 1.0 - (rng.random(64) < 0.60) * 1.0).tolist()
        high = paired_difference(values).high
        passed_today += high is not None and high >= 0
        old = (rule, Differences("old", "champion", "accuracy", tuple(values)))
        assert decide([old, NEW], 0.05).verdict != "promote"
    assert passed_today > 140


def test_a_great_gain_on_one_document_hides_no_loss_on_the_others() -> None:
    values = [-0.02] * 399 + [100.0]
    old = (GUARD, Differences("old", "champion", "log_likelihood", tuple(values)))
    found = decide([old, NEW], NIGHT)
    assert found.findings[0].mean > 0.2
    assert found.verdict == "refuse"
    assert "a loss of 0.01 or of more than 0.1 on 5% is shown: e = " in reason(found)


def test_one_document_that_loses_without_measure_is_not_promoted_and_named() -> None:
    values = [*compared("old", 0.0, 0.02).values[1:], -10.0]
    old = (GUARD, Differences("old", "champion", "log_likelihood", tuple(values)))
    found = decide([old, NEW], NIGHT)
    assert found.findings[0].log_e_for > -math.log(NIGHT)
    assert found.verdict == "not enough evidence"
    assert "1 of them lost more than 0.1" in reason(found)
    assert "no number of units would show it with a mean at or below -0.01" in reason(found)


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.0, "promote"), (0.05, "not enough evidence"), (0.15, "refuse")]
)
def test_broken_documents_are_caught_though_the_mean_is_far_better(
    share: float, verdict: str
) -> None:
    values = np.array(compared("old", 0.05, 0.01).values)
    values[: round(share * 400)] = -0.11
    old = (GUARD, Differences("old", "champion", "log_likelihood", tuple(values.tolist())))
    assert values.mean() > 0.02
    assert decide([old, NEW], NIGHT).verdict == verdict


def test_too_few_documents_are_not_enough_and_the_number_that_decides_is_said() -> None:
    few = (GUARD, compared("old", 0.0, 0.02, units=100))
    found = decide([few, NEW], NIGHT)
    assert found.verdict == "not enough evidence"
    assert found.units_needed is not None
    assert f"is not ruled out: e = {math.exp(found.findings[0].log_e_for):.4g} of 7300" in (
        reason(found)
    )
    assert f"about {found.findings[0].units_needed} units would decide" in reason(found)
    needed = found.findings[0].units_needed or 0
    repeated = few[1].values * math.ceil(needed / 100)
    for count, state in ((needed // 100 * 100, "open"), (len(repeated), "shown")):
        again = replace(few[1], values=repeated[:count])
        assert decide([(GUARD, again), NEW], NIGHT).findings[0].state == state


def test_what_all_tasks_need_is_said_once() -> None:
    """As many as the guard that needs most, and as the target that needs least."""
    guards = [(GUARD, compared(f"g{units}", 0.0, 0.02, units=units)) for units in (60, 120)]
    targets = [(TARGET, compared(f"t{gain}", gain, 0.1, units=50)) for gain in (0.003, 0.004)]
    found = decide([*guards, *targets], NIGHT)
    needed = [each.units_needed or 0 for each in found.findings]
    assert found.units_needed == max(*needed[:2], min(needed[2:])) > needed[0]
    # One target among two needs more evidence than alone.
    alone = decide([*guards, targets[1]], NIGHT).findings[2].units_needed or 0
    assert needed[3] > alone > 400


def test_the_anchor_stops_small_losses_that_add_up() -> None:
    anchor = (GUARD, replace(compared("old", -0.03, 0.02), reference="anchor"))
    found = decide([OLD, anchor, NEW], NIGHT)
    assert found.verdict == "refuse"
    assert reason(found).startswith("old against the anchor: -0.03")


def test_one_target_of_two_is_enough_and_the_other_must_not_be_good() -> None:
    other = (TARGET, compared("other", 0.0, 0.04))
    found = decide([OLD, NEW, other], NIGHT)
    assert found.verdict == "promote"
    assert not any(each.startswith("other") for each in found.reasons)


def test_more_targets_ask_for_more_evidence() -> None:
    edge = (TARGET, compared("new", 0.009, 0.03))
    alone = decide([OLD, edge], 0.05).findings[1]
    useless = [(TARGET, compared(f"t{place}", -0.02, 0.03)) for place in range(9)]
    among = decide([OLD, edge, *useless], 0.05).findings[1]
    assert among.log_e_for == pytest.approx(alone.log_e_for - math.log(10), abs=1e-3)


def test_one_of_many_guards_that_is_worse_by_chance_does_not_refuse() -> None:
    edge = (GUARD, compared("old", -0.018, 0.04))
    alone = decide([edge, NEW], NIGHT)
    assert alone.verdict == "refuse"
    others = [(GUARD, compared(f"g{place}", 0.0, 0.02)) for place in range(19)]
    assert decide([edge, *others, NEW], NIGHT).verdict == "not enough evidence"


def test_what_gains_too_little_everywhere_is_refused_and_looks_no_further() -> None:
    found = decide([OLD, (TARGET, compared("new", 0.0, 0.02))], NIGHT)
    assert found.verdict == "refuse"
    assert "a gain of 0.005 is ruled out: e = " in reason(found)
    hopeful = (TARGET, compared("other", 0.004, 0.02))
    assert decide([OLD, (TARGET, compared("new", 0.0, 0.02)), hopeful], NIGHT).verdict == (
        "not enough evidence"
    )


def test_a_floor_refuses_what_all_else_would_promote() -> None:
    floor = Floor("arithmetic", mean=0.4, least=0.5)
    found = decide([OLD, NEW], NIGHT, [floor, Floor("spelling", 0.9, 0.9)])
    assert found.verdict == "refuse"
    assert found.reasons == ("arithmetic: 0.4 is below its floor of 0.5",)
    assert decide([OLD, NEW], NIGHT, [replace(floor, mean=math.nan)]).verdict == "refuse"


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ([], "there is no guard to judge by\nthere is no target to judge by"),
        ([OLD], "there is no target to judge by"),
        ([NEW], "there is no guard to judge by"),
        ([(GUARD, replace(OLD[1], values=())), NEW], "old against the champion: nothing was comp"),
    ],
)
def test_nothing_to_judge_by_promotes_nothing(
    rules: list[tuple[Rule, Differences]], text: str
) -> None:
    found = decide(rules, NIGHT)
    assert found.verdict == "not enough evidence"
    assert reason(found).startswith(text)
    assert found.units_needed is None


def test_without_alpha_nothing_is_promoted_and_that_is_said() -> None:
    found = decide([OLD, NEW], 0.0)
    assert found.verdict == "not enough evidence"
    assert found.reasons == ("alpha is 0: nothing can be shown by this test",)


def test_an_accuracy_shows_its_flips_both_ways() -> None:
    values = [-1.0] * 12 + [1.0] * 9 + [0.0] * 379
    rule = Rule("guard", margin=0.05, reach=1.0)
    old = (rule, Differences("old", "champion", "accuracy", tuple(values), flips=(12, 9)))
    (finding, _) = decide([old, NEW], NIGHT).findings
    assert finding.mcnemar_p == pytest.approx(0.6636, abs=1e-4)
    assert "12 documents went from right to wrong and 9 from wrong to right" in finding.sentence
    assert "(exact McNemar p = 0.6636)" in finding.sentence
    assert "on 5%" not in finding.sentence


def test_a_tasks_own_number_is_bootstrapped_and_others_are_students() -> None:
    own = decide([(GUARD, replace(OLD[1], kind="own")), NEW], NIGHT).findings
    assert [each.interval for each in own] == ["bootstrap over units", "paired t over units"]
    assert own[0].low == pytest.approx(paired_difference(OLD[1].values).low, abs=3e-4)
    equal = Differences("old", "champion", "own", (0.5,) * 40)
    assert decide([(GUARD, equal)], NIGHT).findings[0].low == 0.5
    single = decide([(GUARD, Differences("old", "champion", "own", (0.5,)))], NIGHT).findings[0]
    assert "+0.5 on 1 unit, too few for an interval" in single.sentence


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"margin": 0.0}, "gate: margin of a guard is 0; it must be above 0"),
        ({"reach": 0.01}, "gate: reach of a guard is 0.01; it must be finite and above 0.01"),
        ({"reach": math.inf}, "gate: reach of a guard is inf; it must be finite"),
        ({"reach": math.nan}, "gate: reach of a guard is nan; it must be finite"),
        ({"worth": -1.0}, "gate: worth of a guard is -1; it must be at least 0"),
        ({"broken_share": 0.0}, "gate: broken_share of a guard is 0; it must be between 0 and 1"),
    ],
)
def test_a_rule_that_nothing_can_meet_or_miss_is_refused(
    fields: dict[str, float], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        replace(GUARD, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (
            "log_likelihood",
            math.nan,
            "unit 1 is nan; differences of kind log_likelihood are finite",
        ),
        ("own", -math.inf, "unit 1 is -inf"),
        ("accuracy", 1.5, "unit 1 is 1.5; differences of kind accuracy are from -1 to 1"),
    ],
)
def test_a_difference_that_cannot_be_is_refused_by_its_place(
    kind: str, value: float, text: str
) -> None:
    with pytest.raises(ContractError, match=f"old against the champion: the difference of {text}"):
        Differences("old", "champion", kind, (0.0, value))  # type: ignore[arg-type]


def test_an_accuracy_counts_whole_flips() -> None:
    old = (GUARD, Differences("old", "champion", "accuracy", (0.0,)))
    with pytest.raises(ConfigError, match=r"reach of old is 0.1; .* must be at least 1"):
        decide([old], NIGHT)


@pytest.mark.parametrize(
    ("alpha", "doubt"), [(1.0, 0.05), (-0.1, 0.05), (math.nan, 0.05), (0.1, 0)]
)
def test_an_error_rate_must_be_one(alpha: float, doubt: float) -> None:
    with pytest.raises(ConfigError, match=r"gate: (alpha|doubt) is .*; it must be"):
        decide([OLD, NEW], alpha, doubt=doubt)


def test_what_is_promised_is_seen_at_the_stated_effect() -> None:
    """docs/gate.md: 400 units show a gain of 0.3 spreads in at least 80% of nights."""
    rng = np.random.default_rng(2)
    promoted = 0
    for _ in range(100):
        old = Differences("old", "champion", "log_likelihood", tuple(rng.normal(0, 0.02, 400)))
        new = Differences("new", "champion", "log_likelihood", tuple(rng.normal(0.009, 0.03, 400)))
        promoted += decide([(GUARD, old), (TARGET, new)], NIGHT).verdict == "promote"
    assert promoted >= 80


@pytest.mark.parametrize(
    ("rule", "loss"), [(GUARD, -0.012), (TARGET, -0.002)], ids=["guard", "target"]
)
def test_a_few_great_gains_hide_no_loss_of_the_many(rule: Rule, loss: float) -> None:
    hidden = Differences("t", "champion", "log_likelihood", [loss] * 2700 + [0.1] * 300)
    others = [NEW] if rule.role == "guard" else [OLD]
    found = decide([(rule, hidden), *others], NIGHT)
    (finding,) = (each for each in found.findings if each.task == "t")
    assert finding.mean > rule.null
    # The evidence of the mean alone would do.
    assert finding.log_e_for > -math.log(NIGHT)
    assert finding.state == "open"
    assert found.verdict == "not enough evidence"
    assert f"at either end {loss}: few units make the mean what it is" in finding.sentence
    assert "most of them say otherwise than the mean" in finding.sentence
