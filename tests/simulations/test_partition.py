from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillation.data import DataError
from simulations.datasets.source import Source
from simulations.partition import client_names, partition, split_rows
from simulations.sections import DataSection

KINDS = ("iid", "dirichlet", "shards", "natural")


def source(
    counts: tuple[int, ...] = (60, 40, 20), sites: int = 0, own_test: int = 0, names: tuple[str, ...] = ()
) -> Source:
    """Rows sorted by class; sites in turn; the last `own_test` rows set aside."""
    labels = np.repeat(np.arange(len(counts)), counts)
    names = names or tuple(f"Site {index}" for index in range(sites))
    rows = np.arange(len(labels))
    return Source(
        classes=tuple(f"class {number}" for number in range(len(counts))),
        labels=labels,
        sites=np.array(names)[rows % len(names)] if names else None,
        test_rows=rows[len(rows) - own_test :] if own_test else None,
    )


def section(**values: Any) -> DataSection:
    return DataSection.model_validate(values)


# ---- the split -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own_test", "values", "sizes"),
    [
        # 120 rows: a quarter is 30 for test, a quarter is 30 for proxy, 60 are left
        (0, {}, (60, 30, 30)),
        (0, {"proxy": 10, "test": 20}, (90, 10, 20)),
        (0, {"proxy": 10, "test": 20, "private": 50}, (50, 10, 20)),
        (0, {"proxy": 0.29, "test": 0.5}, (26, 34, 60)),  # .29 * 120 = 34.8
        (0, {"proxy": 0.001, "test": 1}, (118, 1, 1)),  # a share is never nothing
        (0, {"proxy": 60, "test": 59, "private": 1}, (1, 60, 59)),
        # 100 rows outside the data's own 20 test rows
        (20, {}, (75, 25, 20)),
        (20, {"proxy": 0.5, "test": 0.5, "private": 0.5}, (50, 50, 10)),
        (20, {"proxy": 1, "test": 3, "private": 99}, (99, 1, 3)),
    ],
)
def test_counts_are_exact_and_parts_share_no_row(
    own_test: int, values: dict[str, Any], sizes: tuple[int, int, int]
) -> None:
    data = source(own_test=own_test)
    split = split_rows(data, section(**values), seed=3)
    assert (len(split.private), len(split.proxy), len(split.test)) == sizes
    every = np.concatenate([split.private, split.proxy, split.test])
    assert len(np.unique(every)) == len(every)
    for part in (split.private, split.proxy, split.test):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()


def test_test_rows_come_from_those_set_aside_and_the_others_never() -> None:
    data = source(own_test=20)
    split = split_rows(data, section(test=15), seed=3)
    assert data.test_rows is not None
    assert set(split.test) <= set(data.test_rows)
    assert not set(data.test_rows) & (set(split.proxy) | set(split.private))


def test_a_share_means_the_number_it_reads() -> None:
    # 0.29 * 100 is 28.999999999999996 in binary
    assert len(split_rows(source((50, 50)), section(proxy=0.29), 1).proxy) == 29


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=6).filter(lambda counts: sum(counts) >= 10),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_part_holds_each_class_in_proportion(counts: list[int], seed: int) -> None:
    split = split_rows(source(tuple(counts)), section(), seed)
    labels = source(tuple(counts)).labels
    for part in (split.private, split.proxy, split.test):
        for number, count in enumerate(counts):
            # Of a class spread evenly, a stretch of the order holds its share to within rounding at both ends,
            # and the ends themselves are uncertain by the rounding of the other classes.
            expected = len(part) * count / sum(counts)
            assert abs((labels[part] == number).sum() - expected) < 2 + len(counts) * count / sum(counts)


def test_a_split_is_a_function_of_the_seed() -> None:
    first, again, other = (split_rows(source(), section(), seed) for seed in (1, 1, 2))
    assert first.private.tolist() == again.private.tolist()
    assert first.private.tolist() != other.private.tolist()


def test_every_row_is_as_likely_to_be_public_as_any_other() -> None:
    data, draws = source((9, 3)), 2000
    hits = np.zeros(len(data))
    for seed in range(draws):
        hits[split_rows(data, section(proxy=3), seed).proxy] += 1
    # 3 of 12 rows: p = 1/4; 2000 draws have a standard deviation of sqrt(2000 * 3/16) = 19.4; five of them
    assert np.abs(hits - draws / 4).max() < 97


@pytest.mark.parametrize(
    ("own_test", "values", "message"),
    [
        (0, {"proxy": 5000}, r"5000 \(data.proxy\) \+ 30 \(data.test\) rows and .* only 120 rows: lower data.proxy"),
        (0, {"private": 100}, r"30 \(data.proxy\) \+ 100 \(data.private\) \+ 30 .* only 120 rows: lower data.private"),
        (0, {"proxy": 30, "test": 90}, "at least 1 private row, and there are only 120 rows: lower data.test"),
        (20, {"proxy": 100}, "only 100 rows outside the test part: lower data.proxy"),
        (120, {}, "only 0 rows outside the test part"),
        (20, {"test": 21}, "data.test=21 is more than the data's own 20 test rows: lower it"),
    ],
)
def test_more_rows_than_there_are_cannot_be_asked_for(own_test: int, values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_rows(source(own_test=own_test), section(**values), seed=1)


# ---- the partition -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [53, 79, 120])
def test_every_private_row_goes_to_exactly_one_client(kind: str, count: int) -> None:
    rows = np.sort(np.random.default_rng(count).permutation(120)[:count])
    for seed in range(5):
        parts = partition(source(sites=7), rows, section(partition=kind, alpha=1.0), 7, seed)
        assert len(parts) == 7
        assert np.sort(np.concatenate(parts)).tolist() == rows.tolist()
        assert all(part.dtype == np.int64 and len(part) >= 2 and (np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_partition_is_a_function_of_the_seed_and_leaves_global_randomness_alone(kind: str) -> None:
    def dealt(seed: int) -> list[list[int]]:
        parts = partition(source(sites=4), np.arange(120), section(partition=kind), 4, seed)
        return [part.tolist() for part in parts]

    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    assert dealt(1) == dealt(1)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]
    assert (dealt(1) == dealt(2)) == (kind == "natural")


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_client_gets_everything(kind: str) -> None:
    (part,) = partition(source(sites=1), np.arange(5, 120), section(partition=kind), 1, 1)
    assert part.tolist() == list(range(5, 120))


@pytest.mark.parametrize("kind", KINDS)
def test_dealing_is_silent(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    # alpha = 0.4 repeats its draws, of which flwr-datasets warns; natural draws a progress bar
    partition(source(sites=6), np.arange(120), section(partition=kind, alpha=0.4, min_rows=6), 6, 1)
    assert capfd.readouterr() == ("", "")


def test_iid_clients_differ_by_one_row_and_see_every_class() -> None:
    data = source((300, 300))
    parts = partition(data, np.arange(600), section(partition="iid"), 7, 1)
    assert sorted(map(len, parts)) == [85, 85, 86, 86, 86, 86, 86]  # 600 = 7 * 85 + 5
    # Rows are sorted by class: without a shuffle most clients would hold one class. Half of 85 is 43, sd 4.6.
    assert all(20 < (data.labels[part] == 0).sum() < 66 for part in parts)


def test_a_small_alpha_skews_and_a_large_one_does_not() -> None:
    data = source((300, 300))

    def skew(alpha: float) -> float:
        parts = partition(data, np.arange(600), section(partition="dirichlet", alpha=alpha), 5, 1)
        return float(np.mean([abs((data.labels[part] == 0).mean() - 0.5) for part in parts]))

    assert skew(1000.0) < 0.05
    assert skew(0.1) > 0.25


def test_a_client_with_s_shards_holds_at_most_2s_classes_and_equal_rows() -> None:
    data = source((30,) * 10)
    parts = partition(data, np.arange(299), section(partition="shards", shards_per_client=2), 10, 1)
    # 299 rows in 20 shards: 19 of 15 and one of 14; a shard of 15 sorted rows touches at most 2 classes of 30
    assert sorted(map(len, parts)) == [29] + [30] * 9
    assert all(len(np.unique(data.labels[part])) <= 4 for part in parts)
    assert np.mean([len(np.unique(data.labels[part])) for part in parts]) < 3


def test_natural_clients_are_the_sites_in_the_order_of_their_names() -> None:
    data = source(names=("Zürich", "Aachen", "Bern"))
    parts = partition(data, np.arange(10, 120), section(), 3, 1)  # auto: natural, since there are sites
    assert data.sites is not None
    assert [set(data.sites[part]) for part in parts] == [{"Aachen"}, {"Bern"}, {"Zürich"}]
    assert client_names(data, section(), 3) == ("aachen", "bern", "zurich")


def test_auto_without_sites_is_dirichlet() -> None:
    rows = np.arange(120)
    auto, named = (partition(source(), rows, section(partition=kind), 4, 1) for kind in ("auto", "dirichlet"))
    assert [part.tolist() for part in auto] == [part.tolist() for part in named]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("A b", "a-B", "A  B!"), ["a-b", "a-b-2", "a-b-3"]),
        (("x", "X", "x-2"), ["x", "x-2", "x-2-2"]),
        (("北京", "上海"), ["site", "site-2"]),
        (("../../etc", "y" * 300), ["etc", "y" * 48]),
    ],
)
def test_names_are_safe_for_folders_and_all_different(names: tuple[str, ...], expected: list[str]) -> None:
    assert sorted(client_names(source(names=names), section(), len(names))) == expected


def test_artificial_clients_are_numbered_and_sort_by_number() -> None:
    assert client_names(source(), section(), 2) == ("site-000", "site-001")
    assert client_names(source(sites=3), section(partition="iid"), 2) == ("site-000", "site-001")
    many = client_names(source(), section(), 1001)
    assert many[-1] == "site-1000"
    assert list(many) == sorted(many)
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in many)


LAST = np.arange(100, 120)  # class 2 only
TWO_CLASSES = source((60, 60), sites=4)
WITHOUT_SITE_0 = [row for row in range(120) if row % 4]


@pytest.mark.parametrize(
    ("data", "rows", "values", "clients", "message"),
    [
        (source(), np.arange(120), {"partition": "natural"}, 4, "needs data with sites: .*data.site_column"),
        (
            source(sites=4),
            np.arange(120),
            {},
            10,
            "4 natural sites and federation.clients=10: set federation.clients=4",
        ),
        (TWO_CLASSES, WITHOUT_SITE_0, {}, 4, "site 'Site 0' has no private rows"),
        (TWO_CLASSES, [*WITHOUT_SITE_0, 60], {}, 4, "site-0 would have 1 private rows, under data.min_rows=2"),
        (source(), np.arange(120), {}, 61, "federation.clients=61 .* 122 private rows, and there are 120"),
        (source(), LAST, {}, 2, r"no client would have a row of class 'class 0' \(.*: 2\)"),
        (source(), np.arange(120), {"alpha": 0.01, "min_rows": 10}, 10, "data.alpha=0.01 .* raise data.alpha"),
        (source(), np.arange(120), {"alpha": 1e-300}, 10, "data.alpha=1e-300 .* raise data.alpha"),
        (source(), np.arange(120), {"partition": "shards", "shards_per_client": 13}, 10, "130 shards, .* 120 private"),
    ],
)
def test_an_impossible_partition_is_refused(
    data: Source, rows: Any, values: dict[str, Any], clients: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        partition(data, np.asarray(rows), section(**values), clients, 1)
