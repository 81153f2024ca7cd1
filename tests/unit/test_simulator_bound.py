"""The bound against every schedule that there is of a few clips."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.simulator_bound import lower_bound_s
from orchestrator.simulator_parts import Fleet
from tests.unit.virtual import clip_cost, world

SECONDS = st.floats(0.1, 20.0)
DRAWN = st.floats(0.7, 1.4)


@st.composite
def clips(draw, num_clips, num_stages, widths):
    """Clips that are faster on more ranks, but no cheaper."""
    costs = []
    for number in range(num_clips):
        stages = []
        for _ in range(draw(num_stages)):
            seconds, stage = draw(SECONDS), {}
            for width in widths:
                stage[width] = seconds
                seconds *= draw(st.floats(0.5, 1.0))
            stages.append(stage)
        costs.append(clip_cost(f"a{number}", draw(SECONDS), stages, draw(SECONDS)))
    drawn = [(draw(DRAWN), draw(DRAWN), draw(DRAWN)) for _ in costs]
    return world(costs, drawn, draw(st.sampled_from([0.0, 0.5])))


def ends(there, tasks, workers):
    """When tasks end that are taken in this order by whoever is free first."""
    free, found = [0.0] * workers, {}
    for number, seconds in tasks:
        worker = free.index(min(free))
        free[worker] = found[number] = max(free[worker], there[number]) + seconds
    return found


def best_of_all_s(of, fleet):
    """Every order, width and slice of clips with one stage on one pod."""
    numbers = range(len(of.items))
    width_of = {n: sorted(of.costs[n].stages[0]) for n in numbers}
    places = [[(w, start) for w in width_of[n] for start in range(0, fleet.ranks_per_pod, w)] for n in numbers]
    best = float("inf")
    for order in itertools.permutations(numbers):
        sketched = ends(dict.fromkeys(numbers, 0.0), [(n, of.sketch_s(n)) for n in order], fleet.sketch_workers)
        for line, chosen in itertools.product(itertools.permutations(numbers), itertools.product(*places)):
            free, refined = [0.0] * fleet.ranks_per_pod, {}
            for n in line:
                width, start = chosen[n]
                ranks = range(start, start + width)
                refined[n] = max(sketched[n], *(free[r] for r in ranks)) + of.refine_s(n, 1, 2, width)
                for rank in ranks:
                    free[rank] = refined[n]
            by_end = sorted(numbers, key=lambda n: refined[n])
            done = ends(refined, [(n, of.decode_s(n)) for n in by_end], fleet.decode_workers)
            best = min(best, max(done.values()))
    return best


@settings(max_examples=25, deadline=None)
@given(clips(3, st.just(1), (1, 2)), st.integers(1, 2))
def test_no_schedule_of_three_clips_beats_the_bound(of, workers):
    fleet = Fleet(1, 2, workers, 3)  # a decoder each, so that their order does not matter
    assert lower_bound_s(of, fleet) <= best_of_all_s(of, fleet) * (1 + 1e-9)


def random_schedule_s(of, fleet, rng):
    """Clips stage by stage on random widths and slices, in a random order."""
    numbers = list(range(len(of.items)))
    rng.shuffle(numbers)
    sketched = ends(dict.fromkeys(numbers, 0.0), [(n, of.sketch_s(n)) for n in numbers], fleet.sketch_workers)
    free = {(pod, rank): 0.0 for pod in range(fleet.pods) for rank in range(fleet.ranks_per_pod)}
    refined = {}
    for n in sorted(numbers, key=lambda n: (sketched[n], rng.random())):
        there = sketched[n]
        first, last = 1, len(of.costs[n].stages) + 1
        while first < last:
            stop = rng.randint(first + 1, last)
            width = rng.choice(sorted(of.costs[n].stages[first - 1]))
            starts = [(pod, s) for pod in range(fleet.pods) for s in range(0, fleet.ranks_per_pod, width)]
            pod, start = min(
                rng.sample(starts, min(3, len(starts))), key=lambda p: max(free[p[0], p[1] + r] for r in range(width))
            )
            ranks = [(pod, rank) for rank in range(start, start + width)]
            there = max(there, *(free[rank] for rank in ranks)) + of.refine_s(n, first, stop, width)
            free |= dict.fromkeys(ranks, there)
            first = stop
        refined[n] = there
    done = ends(refined, [(n, of.decode_s(n)) for n in sorted(refined, key=refined.__getitem__)], fleet.decode_workers)
    return max(done.values())


@settings(max_examples=40, deadline=None)
@given(
    clips(8, st.integers(1, 3), (1, 2, 4)),
    st.builds(Fleet, st.integers(1, 2), st.just(4), st.integers(1, 3), st.integers(1, 3)),
    st.integers(0, 999),
)
def test_no_random_schedule_beats_the_bound(of, fleet, seed):
    rng, bound_s = random.Random(seed), lower_bound_s(of, fleet)
    assert bound_s <= min(random_schedule_s(of, fleet, rng) for _ in range(30)) * (1 + 1e-9)


def test_one_clip_alone_takes_exactly_the_bound():
    of = world([clip_cost("a", 2.0, [{1: 8.0, 2: 4.5}, {1: 6.0, 2: 3.2}], 1.0)], [(1.1, 0.9, 1.3)], hand_over_s=0.25)
    assert lower_bound_s(of, Fleet(1, 2, 1, 1)) == 2.0 * 1.1 + (4.5 + 3.2) * 0.9 + 0.25 + 1.3


def test_a_long_backlog_is_bound_by_its_cheapest_gpu_seconds():
    of = world([clip_cost("a", 0.01, [{1: 10.0, 2: 6.0}], 0.01)] * 400, [(1.0, 1.0, 1.0)] * 400)
    least_s = 400 * 10.0 / 4
    assert least_s < lower_bound_s(of, Fleet(2, 2, 4, 4)) < least_s * 1.001


def test_few_sketch_workers_make_the_ranks_wait():
    of = world([clip_cost("a", 5.0, [{1: 1.0}], 0.1)] * 40, [(1.0, 1.0, 1.0)] * 40)
    assert lower_bound_s(of, Fleet(2, 2, 1, 1)) >= 40 * 5.0 + 1.1
    assert lower_bound_s(of, Fleet(2, 2, 40, 40)) < 40


def test_few_decode_workers_keep_the_last_clips():
    of = world([clip_cost("a", 0.1, [{1: 1.0}], 5.0)] * 40, [(1.0, 1.0, 1.0)] * 40)
    assert lower_bound_s(of, Fleet(2, 2, 1, 1)) >= 40 * 5.0 + 1.1
