"""Which rows are private, public and for testing, and which client gets which private rows."""

from __future__ import annotations

import contextlib
import io
import re
import unicodedata
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillation.data import DataError
from simulations.datasets.source import Source
from simulations.sections import DataSection
from strategies.seeds import stream_seed

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Row numbers of a source; the three share none, and each is ascending."""

    private: Rows
    proxy: Rows
    test: Rows


def split_rows(source: Source, settings: DataSection, seed: int) -> Split:
    """Draw the test rows, the public proxy rows and the private rows.

    Whole numbers in the settings are rows. Shares are of all rows; where the data comes with test rows of its own,
    `test` is a share of these, and `private` and `proxy` are shares of the others. `private = 0` takes what the
    other two leave; `test = 0` takes all of the data's own test rows, or else a quarter of all rows.

    Raises:
        DataError: more rows are asked for than there are, or none would be private.

    Guarantees:
        Counts are exact, shares rounded down but never to nothing. Each part has every class in the proportion of
        the whole, up to rounding. A function of the source and the seed.
    """
    rng = np.random.default_rng(stream_seed(seed, "split"))
    if source.test_rows is None or len(source.test_rows) == 0:
        pool = _stratified(np.arange(len(source), dtype=np.int64), source.labels, rng)
        test = _count(settings.test, len(pool)) or max(1, len(pool) // 4)
        private, proxy = _check_sum(settings, len(pool), test)
        test_rows, pool = pool[:test], pool[test:]
    else:
        own = _stratified(source.test_rows, source.labels, rng)
        test = _count(settings.test, len(own)) or len(own)
        if test > len(own):
            raise DataError(f"data.test={settings.test} is more than the data's own {len(own)} test rows: lower it")
        others = np.setdiff1d(np.arange(len(source), dtype=np.int64), own)
        pool = _stratified(others, source.labels, rng)
        private, proxy = _check_sum(settings, len(pool), 0)
        test_rows = own[:test]
    return Split(private=np.sort(pool[proxy : proxy + private]), proxy=np.sort(pool[:proxy]), test=np.sort(test_rows))


def _count(amount: float, rows: int) -> int:
    # The tiny term: 0.29 * 100 is 28.999999999999996 and means 29.
    return amount if isinstance(amount, int) else max(1, int(amount * rows + 1e-9))


def _check_sum(settings: DataSection, rows: int, test: int) -> tuple[int, int]:
    """Numbers of private and proxy rows, of `rows` that also hold `test` test rows."""
    proxy = _count(settings.proxy, rows)
    private = _count(settings.private, rows) or rows - proxy - test
    if private < 1 or private + proxy + test > rows:
        asked = {"data.proxy": proxy, "data.private": max(private, 0)} | ({"data.test": test} if test else {})
        raise DataError(
            f"data.proxy={settings.proxy}, data.private={settings.private} and data.test={settings.test} ask for "
            f"{' + '.join(f'{count} ({name})' for name, count in asked.items() if count)} rows"
            f"{'' if settings.private else ' and at least 1 private row'}, and there are only {rows} rows"
            f"{'' if test else ' outside the test part'}: lower {max(asked, key=lambda name: asked[name])}"
        )
    return private, proxy


def _stratified(rows: Rows, labels: NDArray[np.int64], rng: np.random.Generator) -> Rows:
    """The rows in an order of which every stretch holds the classes in proportion, random within a class."""
    rows = rng.permutation(rows)
    place = np.empty(len(rows))
    for number in np.unique(labels[rows]):
        members = np.flatnonzero(labels[rows] == number)
        # A class of m rows is spread evenly over [0, 1), from a random start.
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    # [0, 1) as a circle, entered anywhere: a cut at a fixed place would favour rows of large classes.
    return np.roll(rows[np.argsort(place, kind="stable")], rng.integers(len(rows) or 1))


def _kind(source: Source, settings: DataSection) -> str:
    if settings.partition != "auto":
        return settings.partition
    return "dirichlet" if source.sites is None else "natural"


def client_names(source: Source, settings: DataSection, clients: int) -> tuple[str, ...]:
    """Names for folders and reports, [a-z0-9-], all different: the natural sites' own, or site-000, site-001, ...

    Guarantees:
        In the order of `partition`'s clients.
    """
    if source.sites is None or _kind(source, settings) != "natural":
        width = max(3, len(str(clients - 1)))
        return tuple(f"site-{index:0{width}d}" for index in range(clients))
    names: list[str] = []
    for site in map(str, np.unique(source.sites)):
        plain = unicodedata.normalize("NFKD", site).encode("ascii", "ignore").decode().lower()
        slug = re.sub(r"[^a-z0-9]+", "-", plain)[:48].strip("-") or "site"
        number, name = 1, slug
        while name in names:
            number += 1
            name = f"{slug}-{number}"
        names.append(name)
    return tuple(names)


def partition(
    source: Source, private_rows: Rows, settings: DataSection, clients: int, seed: int
) -> list[NDArray[np.int64]]:
    """Deal the private rows to the clients.

    Args:
        private_rows: row numbers of the source, as split_rows drew them.
        clients: how many; for natural sites it must be their number.

    Returns:
        One ascending array of row numbers a client; natural sites in the order of their names.

    Raises:
        DataError: too few rows for that many clients, no or another number of natural sites, a class without a
            private row, or a Dirichlet draw that leaves some client under min_rows.

    Guarantees:
        Every private row is placed exactly once. A function of the arguments; no global random state is touched.
    """
    if len(private_rows) < clients * settings.min_rows:
        raise DataError(
            f"federation.clients={clients} with data.min_rows={settings.min_rows} each need "
            f"{clients * settings.min_rows} private rows, and there are {len(private_rows)}: "
            "lower federation.clients, or data.proxy and data.test"
        )
    held = np.unique(source.labels[private_rows])
    missing = [name for number, name in enumerate(source.classes) if number not in held]
    if missing:
        raise DataError(
            f"no client would have a row of class {missing[0]!r} (classes without a private row: {len(missing)}): "
            "lower data.proxy and data.test, raise data.private, or remove the class"
        )
    kind = _kind(source, settings)
    # Shuffled first: IidPartitioner and DirichletPartitioner cut consecutive blocks, and files are often sorted.
    rows = np.random.default_rng(stream_seed(seed, "deal")).permutation(private_rows)
    if kind == "natural":
        dealt = _natural(source, rows, clients)
    elif kind == "shards":
        dealt = _shards(source, rows, settings, clients, seed)
    else:
        dealt = _drawn(kind, source, rows, settings, clients, seed)
    parts = [np.sort(rows[places]) for places in dealt]
    smallest = min(map(len, parts))
    if smallest < settings.min_rows:
        name = client_names(source, settings, clients)[[len(part) for part in parts].index(smallest)]
        raise DataError(
            f"{name} would have {smallest} private rows, under data.min_rows={settings.min_rows}: "
            "raise data.private, or lower data.min_rows, data.proxy and data.test"
        )
    return parts


def _natural(source: Source, rows: Rows, clients: int) -> list[Rows]:
    from flwr_datasets.partitioner import NaturalIdPartitioner

    if source.sites is None:
        raise DataError(
            "data.partition='natural' needs data with sites: "
            "name the column in data.site_column, or set data.partition to iid, dirichlet or shards"
        )
    every, here = np.unique(source.sites), np.unique(source.sites[rows])
    if len(every) != clients:
        raise DataError(
            f"the data has {len(every)} natural sites and federation.clients={clients}: "
            f"set federation.clients={len(every)}, or data.partition to iid, dirichlet or shards"
        )
    if len(here) < len(every):
        absent = sorted(set(every) - set(here))[0]
        raise DataError(f"site {str(absent)!r} has no private rows: lower data.proxy and data.test, or remove it")
    return _places(NaturalIdPartitioner(partition_by="site"), site=source.sites[rows])


def _shards(source: Source, rows: Rows, settings: DataSection, clients: int, seed: int) -> list[Rows]:
    """The rows, sorted by class, cut into clients * shards_per_client shards of equal size, to within one row.

    ShardPartitioner deals shards here, not rows: cutting rows itself, it drops up to half of them.
    """
    from flwr_datasets.partitioner import ShardPartitioner

    count = clients * settings.shards_per_client
    if len(rows) < count:
        raise DataError(
            f"data.shards_per_client={settings.shards_per_client} of {clients} clients are {count} shards, and there "
            f"are {len(rows)} private rows: lower data.shards_per_client or federation.clients"
        )
    shards = np.array_split(np.argsort(source.labels[rows], kind="stable"), count)
    partitioner = ShardPartitioner(
        clients,
        partition_by="shard",
        num_shards_per_partition=settings.shards_per_client,
        shard_size=1,
        seed=_seed(seed),
    )
    dealt = _places(partitioner, shard=np.arange(count))
    return [np.concatenate([shards[number] for number in numbers]) for numbers in dealt]


def _drawn(kind: str, source: Source, rows: Rows, settings: DataSection, clients: int, seed: int) -> list[Rows]:
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner

    if kind == "iid":
        return _places(IidPartitioner(clients), label=source.labels[rows])
    partitioner = DirichletPartitioner(
        clients,
        partition_by="label",
        alpha=settings.alpha,
        min_partition_size=settings.min_rows,
        self_balancing=False,
        seed=_seed(seed),
    )
    try:
        return _places(partitioner, label=source.labels[rows])
    except ValueError as error:
        raise DataError(
            f"data.alpha={settings.alpha} left some of the {clients} clients under data.min_rows={settings.min_rows} "
            f"in every draw over {len(rows)} private rows: "
            "raise data.alpha, or lower data.min_rows or federation.clients"
        ) from error


def _seed(seed: int) -> int:
    return stream_seed(seed, "partition") % 2**31


def _places(partitioner: Any, **column: NDArray[Any]) -> list[Rows]:
    """What a flwr-datasets partitioner gives to each client, as places 0..n-1 in `column`."""
    import datasets

    (values,) = column.values()
    # NaturalIdPartitioner draws a progress bar on stderr; DirichletPartitioner warns at each repeated draw.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        partitioner.dataset = datasets.Dataset.from_dict({"place": np.arange(len(values)), **column})
        return [
            np.asarray(partitioner.load_partition(client)["place"], np.int64)
            for client in range(partitioner.num_partitions)
        ]
