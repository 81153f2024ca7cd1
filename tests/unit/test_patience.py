"""After how long a worker is taken for hung."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cost import CostModel, ForwardCost
from orchestrator.degrees import Limits
from orchestrator.events import StartDecode, StartPhase, StartSketch
from orchestrator.patience import Patience, PatienceConfig
from orchestrator.policy import ArmSizing, Policy, Sizing, Throughput
from orchestrator.types import Action, Decision, Item, Slice
from tests.arms import STAGES

MOST_STEP_S = 910.0
CONFIG = PatienceConfig()
DECISION = Decision(Action("s0.70-f9", STAGES, 0.5, 0.7, 9), "still")
ITEM = Item("key1", "dvg", "p1", "a red circle", 1)


def sized(step_s: float, decode_s: float | None = None) -> Sizing:
    """A policy by which every step takes ``step_s``."""
    forward = ForwardCost(fixed_s=step_s, token_s=0, token2_s=0)
    cost = CostModel(label="calibrated", device="cpu", forwards=(forward,), decode_s=decode_s)
    return Sizing(arms={"dvg": ArmSizing(model="wan-mini", cost=cost, limits=Limits())})


def patience(policy: Policy) -> Patience:
    return Patience(CONFIG, policy, MOST_STEP_S)


def phase(attempt: int = 1) -> StartPhase:
    return StartPhase("key1", attempt, Slice("pod-0", 0, 1), 1, 2)


def test_a_step_may_take_a_multiple_of_what_it_is_predicted_to() -> None:
    assert patience(sized(10.0)).step_s(phase(), ITEM, DECISION) == CONFIG.factor * 10.0


@given(st.floats(0, 1e6), st.integers(1, 9))
def test_it_is_never_impatient_with_a_short_step_nor_more_patient_than_with_a_collective(step_s: float, attempt: int) -> None:
    allowed_s = patience(sized(step_s)).step_s(phase(attempt), ITEM, DECISION)
    assert CONFIG.least_step_s <= allowed_s <= MOST_STEP_S


def test_what_was_given_up_once_is_waited_for_twice_as_long() -> None:
    first, second = (patience(sized(0.1)).step_s(phase(attempt), ITEM, DECISION) for attempt in (1, 2))
    assert second == 2 * first


def test_without_a_prediction_a_step_may_take_as_long_as_anything_may() -> None:
    assert patience(Throughput()).step_s(phase(), ITEM, DECISION) == MOST_STEP_S
    assert patience(sized(0.1)).step_s(phase(), ITEM, None) == MOST_STEP_S


def test_sketches_are_known_by_those_of_their_arm_that_were_seen_and_the_slowest_counts() -> None:
    known, sketch = patience(Throughput()), StartSketch("key1", 1, "sketch-0")
    assert known.whole_s(sketch, ITEM) == CONFIG.most_s
    for seconds in (1.0, 50.0, 2.0):
        known.saw(sketch, ITEM, seconds)
    assert known.whole_s(sketch, ITEM) == CONFIG.factor * 50.0
    assert known.whole_s(StartDecode("key1", 1, "decode-0"), ITEM) == CONFIG.most_s
    assert known.whole_s(sketch, Item("key2", "full", "p1", "a red circle", 1)) == CONFIG.most_s


def test_decodes_are_predicted_until_a_slower_one_is_seen() -> None:
    known, decode = patience(sized(0.1, decode_s=20.0)), StartDecode("key1", 1, "decode-0")
    assert known.whole_s(decode, ITEM) == CONFIG.factor * 20.0
    known.saw(decode, ITEM, 30.0)
    assert known.whole_s(decode, ITEM) == CONFIG.factor * 30.0
    known.saw(decode, ITEM, 1e6)
    assert known.whole_s(decode, ITEM) == CONFIG.most_s
