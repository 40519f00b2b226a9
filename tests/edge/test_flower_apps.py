from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict

import server.app
from client.app import site_of
from client.config import PrivacySection, load_site, write_site
from client.edge import CONSULT, HELLO, REFUSED, Hello, pack, unpack
from client.node import Node
from distillation.data import Samples, load_samples, save_samples
from server.app import CohortError, FlowerCohort, Silent, exchange, serve
from server.checkpoint import CheckpointError, load_progress
from server.config import FederationConfig, write_job
from server.rounds import QuorumError, Reply, run_rounds
from strategies.aggregators import build_aggregator
from strategies.wire import encode_plan

CANARY = "patient-4711"


class Direct:
    """Nodes called as functions."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._nodes = {name: Node.open(path, durable=False) for name, path in files.items()}

    @property
    def clients(self) -> Sequence[str]:
        return sorted(self._nodes)

    def ask(self, plans: Mapping[str, bytes]) -> Iterator[Reply]:
        for name, plan in plans.items():
            yield Reply(name, self._nodes[name].answer(plan))


@pytest.mark.parametrize(
    ("settings", "site"),
    [
        ({}, {}),
        ({"cache_rounds": 2, "uplink": "quantised:1+delta+entropy", "downlink": "float16+delta+entropy"}, {}),
        ({}, {"privacy": PrivacySection(noise_multiplier=2.0, rounds=4, seeded=True)}),
    ],
)
@pytest.mark.parametrize("kind", ["deployment", "simulation"])
def test_flower_carries_the_same_teachers_as_plain_calls(
    kind: str,
    settings: dict[str, Any],
    site: dict[str, Any],
    make_sites: Any,
    make_grid: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    federation: Any,
    gather: Any,
) -> None:
    direct, flower = make_sites(folder=tmp_path / "a", **site), make_sites(folder=tmp_path / "b", **site)
    grid = make_grid(flower.values())
    if kind == "simulation":
        monkeypatch.setenv("CONSILIUM_SITES", str(tmp_path / "b" / "sites"))
        grid.configs = {7 - index: {"partition-id": index, "num-partitions": 3} for index in range(3)}
    config = federation(direct["site-0"], settings=settings)
    rounds = [
        [
            (result.teacher.rows.tobytes(), result.teacher.log_probs.tobytes(), result.upload_bytes)
            for result in run_rounds(cohort, config.rule(), config.exchange, 4)
        ]
        for cohort in (Direct(direct), gather(grid))
    ]
    assert rounds[0] == rounds[1]
    assert len({teacher for _, teacher, _ in rounds[0]}) == 4  # every round teaches something else


def test_an_exception_at_a_site_leaves_no_text(
    make_sites: Any, make_grid: Any, make_plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_sites(1)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError(CANARY)

    plan = encode_plan(make_plan(files["site-0"]))
    grid = make_grid(files.values())
    monkeypatch.setattr(Node, "open", broken)
    assert dict(exchange(grid, CONSULT, {1000: plan}, 1.0)) == {1000: Silent("crashed", f"code {REFUSED}")}
    monkeypatch.setattr("client.config.load_site", broken)
    assert dict(exchange(grid, HELLO, {1000: b""}, 1.0)) == {1000: Silent("crashed", f"code {REFUSED}")}
    assert len(grid.carried) == 2
    assert not any(CANARY.encode() in told for told in grid.carried)


def bad_label(home: Path) -> None:
    path = home / "private.safetensors"
    samples = load_samples(path)
    labels = samples.labels.clone()
    labels[3] = 7
    save_samples(path, Samples(samples.features.clone(), labels))


def text_among_numbers(home: Path) -> None:
    (home / "rows.csv").write_text("x,y,label\n1.0,2.0,a\npatient-4711,3.0,b\n")
    site = load_site(home / "site.toml").model_copy(update={"private": "rows.csv", "target": "label"})
    write_site(home / "site.toml", site)


def another_ledger(home: Path) -> None:
    (home / "private.safetensors.ledger").write_text('{"data_set": "another", "ledger": "patient-4711"}')


@pytest.mark.parametrize(
    "fault",
    [
        bad_label,
        text_among_numbers,
        another_ledger,
        lambda home: (home / "private.safetensors").unlink(),
        lambda home: (home / "site.toml").write_text("site = "),
        lambda home: (home / "../../proxy/proxy.json").write_text("{"),
    ],
)
def test_a_fault_of_the_rows_looks_as_any_other_fault_of_a_sites_set_up(
    make_sites: Any, make_grid: Any, make_plan: Any, tmp_path: Path, fault: Callable[[Path], None]
) -> None:
    privacy = PrivacySection(noise_multiplier=2.0, rounds=4, seeded=True)
    site_file = make_sites(1, privacy=privacy)["site-0"]
    plan, grid = encode_plan(make_plan(site_file)), make_grid([site_file])
    fault(site_file.parent)
    seen: list[Any] = []
    grid.spoil[1000] = lambda _, reply: seen.append(reply) or reply
    for _ in range(2):
        assert dict(exchange(grid, CONSULT, {1000: plan}, 1.0)) == {1000: Silent("crashed", f"code {REFUSED}")}
    assert {(reply.error.code, reply.error.reason) for reply in seen} == {(REFUSED, "refused")}
    assert not any(reply.has_content() for reply in seen)
    assert not any(CANARY.encode() in told for told in grid.carried)


def test_an_error_text_of_flower_is_never_shown(make_sites: Any, make_grid: Any, make_plan: Any) -> None:
    files = make_sites(1)
    grid = make_grid(files.values())
    grid.spoil[1000] = lambda request, _: Message(Error(2, CANARY), reply_to=request)
    ((_, answer),) = exchange(grid, CONSULT, {1000: encode_plan(make_plan(files["site-0"]))}, 1.0)
    assert answer == Silent("crashed", "code 2")


def content(record: RecordDict) -> Callable[[Message, Message], Message]:
    return lambda request, _: Message(record, reply_to=request)


def error(code: int) -> Callable[[Message, Message], Message]:
    return lambda request, _: Message(Error(code, "why"), reply_to=request)


def blob(array: Array) -> RecordDict:
    return RecordDict({"wire": ArrayRecord({"blob": array})})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda *_: None, "late"),
        (error(2), "crashed"),
        (error(8), "crashed"),
        (error(REFUSED), "crashed"),
        (error(5), "no_reply"),
        (error(1), "transport"),
        (error(3), "transport"),
        (error(7), "transport"),
        (error(-1), "transport"),
        (content(RecordDict()), "transport"),
        (content(RecordDict({"wire": MetricRecord({"blob": 1.0})})), "transport"),
        (content(RecordDict({"wire": ArrayRecord({})})), "transport"),
        (content(blob(Array(np.zeros(4, np.float32)))), "transport"),
        (content(blob(Array(np.zeros((2, 2), np.uint8)))), "transport"),
        (content(blob(Array("uint8", (4,), "numpy.ndarray", b"no npy at all"))), "transport"),
        (content(blob(Array("uint8", (4,), "pickle", b"\x80\x04N."))), "transport"),
        (content(pack(b"")), "foreign"),
        (content(pack(b"\x00" * 40)), "foreign"),
        (content(pack(b"\x00" * 100_000)), "too_large"),
    ],
)
def test_a_bad_reply_is_its_own_clients_failure(
    spoil: Any, reason: str, make_sites: Any, make_grid: Any, federation: Any, gather: Any
) -> None:
    files = make_sites(3)
    grid = make_grid(files.values())
    cohort = gather(grid, timeout_s=0.3)
    grid.spoil[1001] = spoil
    config = federation(files["site-0"])
    (result,) = run_rounds(cohort, build_aggregator("mean", {}), config.exchange, 1)
    assert result.replies == 2
    assert [(failure.client, failure.reason) for failure in result.failures] == [("site-1", reason)]


def test_a_reply_that_flower_cannot_put_together_spoils_no_other(make_sites: Any, make_grid: Any) -> None:
    grid = make_grid(make_sites(3).values())
    pull, second = grid.pull_messages, []

    def sometimes(ids: Any) -> Any:
        second.extend(ids)
        if second.index(ids[0]) == 1:
            raise ValueError("hostile")
        return pull(ids)

    grid.pull_messages = sometimes
    answers = dict(exchange(grid, HELLO, dict.fromkeys([1000, 1001, 1002], b""), 1.0))
    assert [type(answers[node]) for node in (1000, 1001, 1002)] == [bytes, Silent, bytes]
    assert answers[1001].reason == "transport"


def test_a_node_that_the_superlink_does_not_know_is_a_failure(make_sites: Any, make_grid: Any) -> None:
    grid = make_grid(make_sites(1).values())
    assert dict(exchange(grid, HELLO, {5: b""}, 1.0))[5].reason == "transport"


def test_duplicate_site_names_are_refused(make_sites: Any, make_grid: Any, gather: Any) -> None:
    file = make_sites(1)["site-0"]
    with pytest.raises(CohortError, match=r"2 nodes say that they are 'site-0'"):
        gather(make_grid([file, file]), clients=2)


def test_another_minor_version_of_flower_is_refused(
    make_sites: Any, make_grid: Any, monkeypatch: pytest.MonkeyPatch, gather: Any
) -> None:
    monkeypatch.setattr(server.app, "version", lambda _: "1.39.2")
    with pytest.raises(CohortError, match=r"'site-0' runs flwr 1\.4\d\.\d and this coordinator flwr 1\.39\.2"):
        gather(make_grid(make_sites(1).values()), clients=1)


def test_too_few_nodes_are_refused_after_the_deadline(make_sites: Any, make_grid: Any, gather: Any) -> None:
    with pytest.raises(CohortError, match=r"1 nodes are online after 0\.1 s and 2 are needed"):
        gather(make_grid(make_sites(1).values()), clients=2, timeout_s=0.1)


def test_a_node_that_does_not_introduce_itself_is_refused(
    make_sites: Any, make_grid: Any, tmp_path: Path, gather: Any
) -> None:
    grid = make_grid([*make_sites(1).values(), tmp_path / "nowhere.toml"])
    with pytest.raises(CohortError, match=r"1 of 2 nodes said which site they are and 2 are needed.*code 100"):
        gather(grid, clients=2)


def test_a_restarted_node_is_found_again_and_a_stranger_is_not(
    make_sites: Any, make_grid: Any, make_plan: Any, gather: Any
) -> None:
    files = make_sites(3)
    grid = make_grid(files.values())
    cohort = gather(grid)
    grid.configs[2000] = grid.configs.pop(1001)  # restarted without a key of its own: a new id
    grid.configs[3000] = {"site": str(files["site-0"])}  # a second site-0
    plan = encode_plan(make_plan(files["site-0"]))
    replies = {reply.client: reply.payload for reply in cohort.ask(dict.fromkeys(["site-0", "site-1"], plan))}
    assert sorted(replies) == ["site-0", "site-1"]
    assert all(isinstance(payload, bytes) for payload in replies.values())
    assert cohort.clients == ["site-0", "site-1", "site-2"]


def test_a_node_that_comes_back_before_its_old_self_is_given_up_is_found_in_a_later_round(
    make_sites: Any, make_grid: Any, make_plan: Any, gather: Any
) -> None:
    files = make_sites(2)
    grid = make_grid(files.values())
    cohort = gather(grid, clients=2)
    old = next(node for node, config in grid.configs.items() if config["site"] == str(files["site-1"]))
    grid.configs[2000] = dict(grid.configs[old])  # back, while its dead self still counts as online
    plan = encode_plan(make_plan(files["site-0"]))
    list(cohort.ask(dict.fromkeys(["site-0", "site-1"], plan)))
    assert 2000 not in cohort._hellos
    del grid.configs[old]
    replies = {reply.client: reply.payload for reply in cohort.ask(dict.fromkeys(["site-0", "site-1"], plan))}
    assert 2000 in cohort._hellos
    assert all(isinstance(payload, bytes) for payload in replies.values())


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"[]",
        b'{"site": 1}',
        b'{"site": "a"}',
        b'{"site": "../a", "flwr": "1.41.0", "python": "3.11.2"}',
        b'{"site": "a", "flwr": "1.41.0 <b>", "python": "3.11.2"}',
        b"[" * 1000,
        b'"' + b"a" * 5000 + b'"',
    ],
)
def test_a_hello_is_a_name_and_two_versions(told: bytes) -> None:
    with pytest.raises(ValueError, match="a hello"):
        Hello.decode(told)
    said = Hello("a", "1.41.0", "3.11.2")
    assert Hello.decode(said.encode()) == said


def test_pack_and_unpack_are_inverse() -> None:
    for told in (b"", b"\x00", bytes(range(256))):
        assert unpack(Message(pack(told), 1, CONSULT)) == told


@pytest.mark.parametrize("config", [{}, {"partition-id": 0}, {"partition-id": 9}])
def test_a_node_without_a_site_is_refused(config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONSILIUM_SITES", raising=False)
    if config.get("partition-id"):
        monkeypatch.setenv("CONSILIUM_SITES", str(tmp_path))
    with pytest.raises(ValueError, match=r"no site|partition-id=9 must be below 0"):
        site_of(config)


def job(tmp_path: Path, config: FederationConfig) -> tuple[Path, Path]:
    folder = tmp_path / "job"
    folder.mkdir()
    write_job(folder / "federation.json", config)
    return folder, tmp_path / "out"


def test_a_run_leaves_its_checkpoint_and_goes_on_from_it(
    make_sites: Any, make_grid: Any, tmp_path: Path, federation: Any
) -> None:
    files = make_sites(3)
    config = federation(files["site-0"], rounds=1)
    folder, out = job(tmp_path, config)
    (out / "checkpoint").mkdir(parents=True)
    (out / "checkpoint" / "failure.json").write_text("{}")  # of a run before
    serve(make_grid(files.values()), folder, out, resume=False)
    assert not (out / "checkpoint" / "failure.json").exists()
    sites = json.loads((out / "checkpoint" / "sites.json").read_text())
    assert [site["site"] for site in sites] == ["site-0", "site-1", "site-2"]
    with pytest.raises(CheckpointError, match="resume=true"):
        serve(make_grid(files.values()), folder, out, resume=False)
    longer = federation(files["site-0"], rounds=3)
    write_job(folder / "federation.json", longer)
    serve(make_grid(files.values()), folder, out, resume=True)
    progress = load_progress(out / "checkpoint" / "server.safetensors", longer)
    assert [row.round for row in progress.rounds] == [1, 2, 3]
    # A lost checkpoint is no reason to begin anew over what was finished.
    metrics = (out / "metrics.csv").read_bytes()
    (out / "checkpoint" / "server.safetensors").unlink()
    for resume in (True, False):
        with pytest.raises(CheckpointError, match=r"server.safetensors is gone, and .*metrics.csv has finished rounds"):
            serve(make_grid(files.values()), folder, out, resume=resume)
    assert (out / "metrics.csv").read_bytes() == metrics


@pytest.mark.parametrize(("mode", "patience"), [("sync", 0), ("async", 7)])
def test_only_an_asynchronous_run_waits_for_late_answers(
    mode: str,
    patience: int,
    make_sites: Any,
    make_grid: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    federation: Any,
) -> None:
    files = make_sites(3)
    told = []
    gathered = FlowerCohort.gather
    monkeypatch.setattr(
        FlowerCohort, "gather", lambda *args, **kwargs: told.append(kwargs) or gathered(*args, **kwargs)
    )
    folder, out = job(tmp_path, federation(files["site-0"], rounds=1, settings={"mode": mode, "patience": 7}))
    serve(make_grid(files.values()), folder, out, resume=False)
    assert told == [{"patience": patience}]


def test_a_failed_quorum_is_told_on_disk(make_sites: Any, make_grid: Any, tmp_path: Path, federation: Any) -> None:
    files = make_sites(3)
    folder, out = job(tmp_path, federation(files["site-0"], quorum=1.0, timeout_s=0.5))
    grid = make_grid(files.values())
    grid.spoil[1002] = error(8)
    with pytest.raises(QuorumError):
        serve(grid, folder, out, resume=False)
    told = json.loads((out / "checkpoint" / "failure.json").read_text())
    assert told["round"] == 1
    assert told["failures"] == [{"client": "site-2", "reason": "crashed", "detail": "code 8"}]
    assert told["reason"].startswith("round 1: 2 of 3 answers were usable and the quorum is 3")
    assert not told["refused"]


def test_that_budgets_alone_ended_a_run_is_told_on_disk_and_read_there(
    make_sites: Any, make_grid: Any, tmp_path: Path, federation: Any
) -> None:
    from simulations.engines.flower import _failed

    files = make_sites(3, privacy=PrivacySection(noise_multiplier=3.0, epsilon=4.0, rounds=1, seeded=True))
    folder, out = job(tmp_path, federation(files["site-0"], rounds=2))
    with pytest.raises(QuorumError):
        serve(make_grid(files.values()), folder, out, resume=False)
    told = json.loads((out / "checkpoint" / "failure.json").read_text())
    assert {failure["reason"] for failure in told["failures"]} == {"refused_budget_out"}
    assert told["refused"]
    assert _failed(told).refused


def test_a_job_for_another_proxy_set_is_refused(
    make_sites: Any, make_grid: Any, tmp_path: Path, federation: Any
) -> None:
    files = make_sites(3)
    config = federation(files["site-0"])
    other = config.model_dump() | {"exchange": {**config.model_dump()["exchange"], "proxy_sha256": "0" * 64}}
    folder, out = job(tmp_path, FederationConfig.model_validate(other))
    with pytest.raises(ValueError, match="the job names 000000000000"):
        serve(make_grid(files.values()), folder, out, resume=False)
    assert "the job names" in json.loads((out / "checkpoint" / "failure.json").read_text())["reason"]
