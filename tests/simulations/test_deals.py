"""Ledgers that outlive a run count the rows that they say: another deal is refused before anything is paid."""

import json

import pytest

from privacy import chain
from simulations.config import ConfigError
from simulations.deals import deal_of
from simulations.experiment import run_experiment
from simulations.preparation import check_config, prepare

FILTER = {"noise_multiplier": 4.0, "epsilon": 20.0, "composition": "filter"}


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "kept"


def private(tiny, kept, **sections):
    return tiny(privacy={**FILTER, "ledgers": str(kept)}, **sections)


def rows(setup):
    """Bytes of each site's private rows, and the proxy set's name."""
    return [setup.study.private(name).read_bytes() for name in setup.study.names], setup.study.proxy_sha256


def test_other_seeds_train_anew_on_the_same_rows_where_the_deals_seed_is_fixed(tiny, tmp_path):
    first, other, dealt = (
        prepare(tiny(**sections), tmp_path / str(number))
        for number, sections in enumerate(
            [
                {"data": {"seed": 1}},
                {"data": {"seed": 1}, "federation": {"seed": 2}},
                {"federation": {"seed": 2}},
            ]
        )
    )
    assert rows(first) == rows(other) != rows(dealt)
    assert rows(prepare(tiny(federation={"seed": 2}, data={"seed": 2}), tmp_path / "same")) == rows(dealt)
    assert rows(prepare(tiny(), tmp_path / "default")) == rows(first)  # federation.seed is 1
    assert first.federation.exchange.run != other.federation.exchange.run


def test_a_deal_is_told_by_its_seed_wherever_that_stands(tiny):
    assert deal_of(tiny()) == deal_of(tiny(data={"seed": 1}, federation={"seed": 7})) != deal_of(tiny(data={"seed": 7}))
    assert deal_of(tiny()) != deal_of(tiny(federation={"clients": 3}))
    assert deal_of(tiny()) == deal_of(tiny(client={"local_epochs": 1}))


def test_ledgers_of_other_rows_are_refused_before_anything_is_paid(tiny, inline, tmp_path, kept):
    assert run_experiment(private(tiny, kept), tmp_path / "one")["verdict"] == "ok"
    before = {path: path.read_bytes() for path in sorted(kept.glob("*.sqlite"))}
    assert len(before) == 4
    # The reviewer's case: the seed deals anew, and client 0's record is client 1's, or public.
    with pytest.raises(ConfigError) as refused:
        run_experiment(private(tiny, kept, federation={"seed": 2}), tmp_path / "two")
    assert str(refused.value) == (
        f"privacy.ledgers={kept} counts what the rows of another deal have paid: 4 of 4 sites have other private rows "
        "here, site-000 is one and the public proxy rows are others. Keep [data] and federation.clients as they were "
        "and set data.seed=1, or name another folder for other rows"
    )
    assert not (tmp_path / "two").exists()
    assert {path: path.read_bytes() for path in sorted(kept.glob("*.sqlite"))} == before
    # The way out.
    told = run_experiment(private(tiny, kept, federation={"seed": 2}, data={"seed": 1}), tmp_path / "three")
    assert told["verdict"] == "ok"
    assert {len(one["runs"]) for one in told["privacy"]["each"]} == {2}


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"federation": {"clients": 3}}, "4 of 4 sites have other private rows here"),
        ({"data": {"private": 160}}, "4 of 4 sites have other private rows here, site-000 is one. Keep"),
    ],
)
def test_whatever_deals_otherwise_is_another_deal(tiny, inline, tmp_path, kept, sections, says):
    run_experiment(private(tiny, kept), tmp_path / "one")
    with pytest.raises(ConfigError, match=says):
        run_experiment(private(tiny, kept, **sections), tmp_path / "two")


def test_what_trains_otherwise_on_the_same_rows_is_the_same_deal(tiny, inline, tmp_path, kept):
    run_experiment(private(tiny, kept), tmp_path / "one")
    told = run_experiment(private(tiny, kept, student={"distil_epochs": 1}), tmp_path / "two")
    assert told["verdict"] == "ok"


def test_a_deal_that_was_lost_or_broken_is_no_deal(tiny, inline, tmp_path, kept):
    run_experiment(private(tiny, kept), tmp_path / "one")
    whole = (kept / "deal.json").read_text()
    (kept / "deal.json").write_text(whole[:-20])
    with pytest.raises(ConfigError, match=r"deal\.json is no deal of this version"):
        run_experiment(private(tiny, kept), tmp_path / "two")
    (kept / "deal.json").unlink()
    with pytest.raises(ConfigError, match=r"holds ledgers and no deal\.json"):
        run_experiment(private(tiny, kept), tmp_path / "two")
    assert json.loads(whole)["about_private_rows"] is True


def test_a_resumed_run_that_is_refused_leaves_no_private_rows_behind(tiny, inline, tmp_path, kept):
    run_experiment(private(tiny, kept), tmp_path / "one")
    told = json.loads((kept / "deal.json").read_text())
    told["private_sha256"]["site-002"] = "0" * 64  # the data's file has changed meanwhile
    (kept / "deal.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="1 of 4 sites have other private rows here, site-002 is one"):
        run_experiment(private(tiny, kept), tmp_path / "one", resume=True)
    assert not list((tmp_path / "one").rglob("private.safetensors"))


def test_a_folder_that_cannot_be_is_refused(tiny, inline, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        run_experiment(private(tiny, tmp_path / "file"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_whose_ledgers_die_with_it_keeps_no_deal(tiny, inline, tmp_path):
    run_experiment(tiny(privacy=FILTER), tmp_path / "out")
    assert not list(tmp_path.rglob("deal.json"))


def test_every_opening_of_a_ledger_that_outlives_its_run_is_durable(tiny, inline, tmp_path, kept, monkeypatch):
    """One that is not would, as the last to close it, empty the write-ahead log without waiting for the disk."""
    opened = []

    class Recorded(chain.Chain):
        def __init__(self, path, *, durable, wait_s):
            opened.append((path.parent == kept, durable))
            super().__init__(path, durable=durable, wait_s=wait_s)

    monkeypatch.setattr("privacy.ledger.Chain", Recorded)
    run_experiment(private(tiny, kept), tmp_path / "one")
    run_experiment(private(tiny, kept, student={"distil_epochs": 1}), tmp_path / "two")  # finds them there
    assert set(opened) == {(True, True)}
    opened.clear()
    run_experiment(tiny(privacy=FILTER), tmp_path / "three")
    # Those that end with their run need not; but the report reads durably what somebody else may have written so.
    assert set(opened) == {(False, False), (False, True)}


def test_an_engine_that_writes_no_durable_ledgers_is_refused_for_them(tiny, kept):
    with pytest.raises(ConfigError, match=r"privacy\.ledgers=.* outlive the run, .* take in-process or deployment"):
        check_config(private(tiny, kept, federation={"engine": "flower-simulation"}))
