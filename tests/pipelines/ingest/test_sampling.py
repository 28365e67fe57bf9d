import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ingest.permutation import permute
from pipelines.ingest.sampling import SampleOrder, Source, slices_of_step

# Time varies too much on a shared machine for a deadline.
relaxed = settings(deadline=None, max_examples=40)

ROW_GROUPS = st.lists(st.integers(0, 5), min_size=1, max_size=20).filter(any)


def order_of(*row_groups, seed=0, window_size=16, weights=None, later_weights=()):
    sources = [Source.from_row_groups(rows) for rows in row_groups]
    return SampleOrder.of(sources, seed=seed, window_size=window_size, weights=weights, later_weights=later_weights)


def pairs(samples, chosen):
    return list(zip(samples.row_group[chosen].tolist(), samples.row[chosen].tolist(), strict=True))


def all_rows(row_groups):
    return [(group, row) for group, rows in enumerate(row_groups) for row in range(rows)]


@relaxed
@given(size=st.integers(1, 3000), key=st.lists(st.integers(0, 2**64), min_size=1, max_size=4))
def test_permute_is_a_permutation(size, key):
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@relaxed
@given(size=st.integers(1, 3000), key=st.lists(st.integers(0, 2**64), min_size=1, max_size=4))
def test_permute_goes_back(size, key):
    there = permute(np.arange(size), size, key)
    assert permute(there, size, key, inverse=True).tolist() == list(range(size))


@settings(relaxed, max_examples=30)
@given(
    row_groups=st.lists(ROW_GROUPS, min_size=1, max_size=4),
    weights=st.none() | st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
    window_size=st.integers(1, 40),
    end=st.integers(0, 600),
    data=st.data(),
)
def test_find_returns_every_visit_that_the_sequence_has(row_groups, weights, window_size, end, data):
    order = order_of(*row_groups, seed=3, window_size=window_size, weights=weights and weights[: len(row_groups)])
    source = data.draw(st.integers(0, len(row_groups) - 1))
    chosen = data.draw(st.lists(st.sampled_from(all_rows(row_groups[source])), unique=True))
    groups, rows = (np.array([pair[axis] for pair in chosen], dtype=np.int64) for axis in (0, 1))
    visits = order.find(source, groups, rows, end)
    found = [
        (position, epoch, *chosen[index])
        for index, position, epoch in zip(*(column.tolist() for column in visits), strict=True)
    ]
    walked = order.locate(np.arange(end))
    expected = [
        (position, epoch, group, row)
        for position, which, epoch, group, row in zip(*(column.tolist() for column in walked), strict=True)
        if which == source and (group, row) in chosen
    ]
    assert found == expected


def test_find_does_not_walk_the_sequence():
    order = order_of([128] * 50_000, [100] * 700, window_size=1024, weights=[0.9, 0.1])
    groups, rows = np.arange(0, 700, 70), np.arange(10)
    start = time.perf_counter()
    visits = order.find(1, groups, rows, 10**8)
    assert time.perf_counter() - start < 30  # half a second; a walk takes minutes
    there = order.locate(visits.position)
    assert (there.source == 1).all() and (there.epoch == visits.epoch).all()
    assert (there.row_group == groups[visits.index]).all() and (there.row == rows[visits.index]).all()
    assert len(visits.position) >= 10 * (10**7 // 70_000 - 1)


def test_permute_spreads_evenly_and_differs_by_key():
    # Where 0 goes over many keys is uniform: chi-squared with 99 degrees of freedom, mean 99, deviation 14.
    images = np.array([permute(np.array([0]), 100, (key,))[0] for key in range(10_000)])
    counts = np.bincount(images, minlength=100)
    assert ((counts - 100) ** 2 / 100).sum() < 170
    # Neighbours do not stay together: in a random order of 4,096, one in 4,096 pairs does.
    order = permute(np.arange(4096), 4096, (7,))
    assert (np.diff(order) == 1).sum() < 10


def test_permute_is_the_one_that_past_runs_used():
    # A change here would reorder the samples of every run that is under way.
    assert permute(np.arange(10), 10, (1, 2, 3)).tolist() == [3, 6, 2, 5, 7, 9, 1, 4, 0, 8]
    samples = order_of([4, 4, 3, 4], seed=5, window_size=5).locate([0, 7, 10**12])
    assert np.transpose(samples).tolist() == [[0, 0, 0, 3, 2], [7, 0, 0, 1, 2], [1000000000000, 0, 66666666666, 2, 1]]


@relaxed
@given(row_groups=ROW_GROUPS, seed=st.integers(0, 2**32), window_size=st.integers(3, 40))
def test_every_epoch_visits_every_row_exactly_once(row_groups, seed, window_size):
    order = order_of(row_groups, seed=seed, window_size=window_size)
    num_windows = -(-3 * sum(row_groups) // window_size)
    samples = order.locate(np.arange(num_windows * window_size))
    for epoch in range(3):
        assert sorted(pairs(samples, samples.epoch == epoch)) == all_rows(row_groups)


@settings(relaxed, max_examples=15)
@given(
    row_groups=st.lists(ROW_GROUPS, min_size=1, max_size=4),
    weights=st.lists(st.floats(0.01, 100), min_size=4, max_size=4),
    window_size=st.integers(3, 40),
)
def test_every_epoch_of_a_mixture_is_exact(row_groups, weights, window_size):
    order = order_of(*row_groups, window_size=window_size, weights=weights[: len(row_groups)])
    samples = order.locate(np.arange(20 * window_size))
    for index, rows in enumerate(row_groups):
        mine = samples.source == index
        for epoch in range(samples.epoch[mine].max(initial=0)):
            assert sorted(pairs(samples, mine & (samples.epoch == epoch))) == all_rows(rows)


@relaxed
@given(
    weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6),
    window_size=st.integers(1, 2000),
    window=st.integers(0, 10**12),
)
def test_windows_are_full_and_counts_follow_the_weights(weights, window_size, window):
    order = order_of(*[[1]] * len(weights), window_size=window_size, weights=weights)
    before, after = order.counts_before_window(window), order.counts_before_window(window + 1)
    assert sum(before) == window * window_size and sum(after) - sum(before) == window_size
    assert all(first <= last for first, last in zip(before, after, strict=True))
    (_, shares), *_ = order.weights
    exact = [weight / sum(shares) for weight in shares]
    for count, share in zip(before, exact, strict=True):
        assert count == pytest.approx(window * window_size * share, rel=1e-12, abs=len(weights))


def test_counts_by_weight_are_exact_in_the_long_run():
    order = order_of([8], [8], [8], window_size=10, weights=[0.1, 0.2, 0.7])
    assert order.counts_before_window(10**9) == [10**9, 2 * 10**9, 7 * 10**9]


def test_weights_change_at_a_window_and_nothing_before_it():
    rows, window_size = [[4] * 9, [5] * 7], 10
    before = order_of(*rows, window_size=window_size, weights=[1, 1])
    later = [(42, [1, 9]), (71, [3, 2]), (79, [4, 1])]  # windows 5 and 8: the last of those that begin within a window
    order = order_of(*rows, window_size=window_size, weights=[1, 1], later_weights=later)
    positions = np.arange(200)
    samples, unchanged = order.locate(positions), before.locate(positions)
    for column, expected in zip(samples, unchanged, strict=True):
        assert (column[:50] == expected[:50]).all()
    counts = [np.bincount(window, minlength=2).tolist() for window in samples.source.reshape(-1, window_size)]
    assert counts == [[5, 5]] * 5 + [[1, 9]] * 3 + [[8, 2]] * 12
    for position in (0, 49, 50, 83, 199):
        assert order.counts_before(position) == np.bincount(samples.source[:position], minlength=2).tolist()
    for index, groups in enumerate(rows):  # every row of every epoch, once, across the changes
        mine = samples.source == index
        for epoch in range(samples.epoch[mine].max()):
            assert sorted(pairs(samples, mine & (samples.epoch == epoch))) == all_rows(groups)


def test_without_weights_all_sources_end_their_epochs_together():
    order = order_of([10] * 3, [10] * 6, [10], window_size=20)
    samples = order.locate(np.arange(100))
    assert samples.epoch.max() == 0
    assert np.bincount(samples.source).tolist() == [30, 60, 10]


def test_counts_before_agree_with_the_samples():
    order = order_of([5] * 4, [3] * 5, window_size=7, weights=[2, 1])
    samples = order.locate(np.arange(100))
    for position in (0, 1, 7, 50, 97):
        assert order.counts_before(position) == np.bincount(samples.source[:position], minlength=2).tolist()


@relaxed
@given(row_groups=ROW_GROUPS, positions=st.lists(st.integers(0, 10**13), min_size=1, max_size=20))
def test_access_is_random(row_groups, positions):
    order = order_of(row_groups, [3, 3], window_size=12)
    together = order.locate(positions)
    for index, position in enumerate(positions):
        alone = order.locate([position])
        window = order.window(position // 12)
        assert [column[index] for column in together] == [column[0] for column in alone]
        assert [column[0] for column in alone] == [column[position % 12] for column in window]


def test_order_depends_on_seed_and_epoch_and_source():
    def groups(samples, chosen):
        return samples.row_group[chosen].tolist()

    # Chunks of one row, windows of one sample: the order of the chunks is bare.
    positions = np.arange(400)
    first = order_of([1] * 100, [1] * 100, seed=1, window_size=1, weights=[1, 1]).locate(positions)
    other = order_of([1] * 100, [1] * 100, seed=2, window_size=1, weights=[1, 1]).locate(positions)
    orders = [
        groups(samples, (samples.source == source) & (samples.epoch == epoch))
        for samples in (first, other)
        for source in (0, 1)
        for epoch in (0, 1)
    ]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 8


def test_rows_of_a_row_group_stay_in_few_windows():
    # What makes reading cheap: a window touches as many row groups as fill it, and at most one more.
    order = order_of([128] * 1000, window_size=1024)
    for window in range(20):
        assert len(np.unique(order.window(window).row_group)) <= 9


@relaxed
@given(slices_per_worker=st.integers(1, 8), world_size=st.integers(1, 8), step=st.integers(0, 10**9))
def test_workers_share_the_slices_of_a_step(slices_per_worker, world_size, step):
    num_slices = slices_per_worker * world_size
    shares = [slices_of_step(step, num_slices, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert all(index % world_size == rank for rank, share in enumerate(shares) for index in share)
    assert sorted(index for share in shares for index in share) == list(slices_of_step(step, num_slices))
    assert slices_of_step(step + 1, num_slices).start == slices_of_step(step, num_slices).stop


@pytest.mark.parametrize("odd_every", [None, 1000])
def test_random_access_at_a_billion_samples(odd_every, capsys):
    rows = np.full(7_812_500, 128, dtype=np.int32)
    if odd_every:
        rows[::odd_every] = 77
    order = order_of(rows, window_size=1024)
    assert order.sources[0].odd_groups.nbytes < 1e6  # a task gets no table of row groups
    windows = [0, 10**5, 9 * 10**5, 10**9, 10**12]
    times = []
    for window in windows:
        start = time.perf_counter()
        order.window(window)
        times.append(time.perf_counter() - start)
    tracemalloc.start()
    for window in windows:
        order.window(window)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6
    with capsys.disabled():
        slowest, memory = max(times) * 1e3, peak / 1e6
        print(f" [{len(rows):,} row groups: a window in at most {slowest:.1f} ms, {memory:.1f} MB]", end="")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Source.from_row_groups([]), "no row group holds a sample"),
        (lambda: Source.from_row_groups([0, 0]), "no row group holds a sample"),
        (lambda: order_of(), "sources: none given"),
        (lambda: order_of([1], [1], weights=[1]), "weights: 1 given for 2 sources"),
        (lambda: order_of([1], [1], weights=[1, 0]), "must all be above 0"),
        (lambda: order_of([1], window_size=0), "window_size: 0"),
        (lambda: order_of([1]).locate([-1]), "positions: -1 is negative"),
        (lambda: slices_of_step(0, 5, world_size=2), "slices_per_step: 5"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_imports_neither_ray_nor_torch():
    code = "import sys, pipelines.ingest.sampling; assert not {'ray', 'torch', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
