"""What cannot be forgotten, and that nothing is left of the attempt."""

import json
import shutil
from types import SimpleNamespace

import pytest

from server.forget import Remainder, forget
from server.votes import VotesError
from simulations.config import ConfigError
from simulations.experiment import run_experiment
from simulations.prepared import alone
from simulations.probes.forgetting import forget_in
from tests.simulations.test_forget import DEAF, GONE, merged


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("simulations.experiment.write_report", lambda folder: folder)


@pytest.fixture
def kept(tiny, inline, tmp_path):
    run_experiment(tiny(**merged(DEAF, {"federation": {"rounds": 1}})), tmp_path / "run")
    return tmp_path / "run"


def refused(run, client, tmp_path, error, says):
    """It is refused, and neither the run nor the folder of results is touched."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} if run.exists() else {}
    with pytest.raises(error, match=says) as raised:
        forget_in(run, [client], tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
    assert {path: path.read_bytes() for path in before} == before


def test_a_folder_without_a_run_is_refused(tmp_path, inline):
    refused(tmp_path / "nowhere", GONE, tmp_path, ConfigError, "holds no run: name the folder of results")


def test_a_run_that_goes_on_is_refused(kept, tmp_path):
    (kept / "run.json").unlink()
    refused(kept, GONE, tmp_path, ConfigError, f"is not finished: .*--out {kept} --resume")


@pytest.mark.parametrize("name", ["run.json", "config.json"])
@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"federation": 3}', b"[]"])
def test_a_broken_file_is_refused(name, content, kept, tmp_path):
    (kept / name).write_bytes(content)
    refused(kept, GONE, tmp_path, ConfigError, rf"{name} is ")


def test_an_unknown_client_is_refused_with_the_known_ones(kept, tmp_path):
    refused(kept, "site-9", tmp_path, ConfigError, "no client is called 'site-9': the names are site-000, site-001")
    refused(kept, "../../site-001", tmp_path, ConfigError, "no client is called '../../site-001'")


def test_a_run_that_kept_no_votes_is_refused_with_the_key(tiny, inline, tmp_path):
    run_experiment(tiny(), tmp_path / "run")
    refused(tmp_path / "run", GONE, tmp_path, VotesError, "kept no votes: run it with --set federation.keep_votes=true")


def test_a_client_that_never_answered_is_refused(tiny, inline, tmp_path):
    inline.refusing = frozenset({GONE})
    run_experiment(tiny(**DEAF), tmp_path / "run")
    refused(
        tmp_path / "run", GONE, tmp_path, VotesError, f"client '{GONE}' has no vote in .*nothing is to be forgotten"
    )


def test_votes_that_teach_nothing_without_the_client_are_refused(tiny, inline, tmp_path):
    # two clients: a row needs max(2, ceil(0.3 * 2)) = 2 voters, and one is left
    run_experiment(tiny(**merged(DEAF, {"federation": {"clients": 2}})), tmp_path / "run")
    refused(
        *(tmp_path / "run", "site-001", tmp_path, VotesError),
        "without 'site-001' no row of round 1 has the 2 voters that it needs",
    )


def test_class_tables_have_nothing_to_teach_anew(tiny, inline, tmp_path):
    with pytest.raises(ConfigError, match=r"federation.keep_votes=true keeps votes for `consilium forget`"):
        run_experiment(tiny(**merged(DEAF, {"strategy": {"preset": "feddistill"}})), tmp_path / "run")
    # a coordinator's own job file may say so all the same
    job = SimpleNamespace(has_student=False)
    with pytest.raises(VotesError, match="class tables teach no student"):
        forget(job, Remainder({}, []), None, None, tmp_path / "out")


def test_a_cache_of_disputed_rows_cannot_be_redone(tiny, inline, tmp_path):
    run_experiment(tiny(**merged(DEAF, {"strategy": {"choice": "disagreement", "cache_rounds": 2}})), tmp_path / "run")
    refused(tmp_path / "run", GONE, tmp_path, VotesError, "rows chosen by disagreement depend on the forgotten votes")


@pytest.mark.parametrize("lost", ["client-site-001.safetensors", "client-site-000.safetensors", "."])
def test_lost_votes_of_others_are_refused_before_anything_is_claimed(lost, tiny, inline, tmp_path):
    run_experiment(tiny(**DEAF), tmp_path / "run")
    path = tmp_path / "run" / "votes" / "round-00002" / lost
    left = 3 if path.is_file() else 0
    path.unlink() if left else shutil.rmtree(path)
    says = f"round 2 of .*votes holds votes of {left} clients and metrics.csv counted 4 answers.* from a backup"
    refused(tmp_path / "run", GONE, tmp_path, VotesError, says)


def test_a_vote_too_many_is_refused(kept, tmp_path):
    home = kept / "votes" / "round-00001"
    shutil.copy(home / "client-site-001.safetensors", home / "client-site-001 (copy).safetensors")
    refused(kept, GONE, tmp_path, VotesError, "round 1 of .*votes holds votes of 5 clients .* counted 4 answers")


@pytest.fixture
def unprepared(monkeypatch):
    """Whoever deals out the data fails the test: what is wrong was to be seen before."""
    monkeypatch.setattr("simulations.probes.commands.prepare", lambda *_: pytest.fail("computed"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "metrics.csv is not there and says how many votes counted"),
        ("round,replies\n1,4\n", "metrics.csv is broken .*'late'"),
        ("round,replies,late\n1,four,0\n", "metrics.csv is broken .*'four'"),
        ("round,replies,late\n1\n", "metrics.csv is broken"),
        ("round,replies,late\n", r"metrics.csv must hold rounds 1 to 1 and holds \[\]: restore"),
        ("round,replies,late\n2,4,0\n", r"metrics.csv must hold rounds 1 to 1 and holds \[2\]"),
    ],
)
def test_without_the_runs_count_of_votes_nothing_is_computed(content, says, kept, unprepared, tmp_path):
    if content is None:
        (kept / "metrics.csv").unlink()
    else:
        (kept / "metrics.csv").write_text(content)
    refused(kept, GONE, tmp_path, ConfigError, says)


@pytest.mark.parametrize("content", ["[]", "{", '{"site-001": 3}', '{"site-001": ["x"]}'])
def test_a_broken_record_of_the_forgotten_is_refused(content, kept, unprepared, tmp_path):
    (kept / "votes" / "forgotten.json").write_text(content)
    refused(kept, GONE, tmp_path, VotesError, "forgotten.json is broken .*: restore it from a backup")


def test_a_folder_that_is_no_rounds_is_refused(kept, unprepared, tmp_path):
    (kept / "votes" / "round-old").mkdir()
    refused(kept, GONE, tmp_path, VotesError, "round-old is no folder of a round's votes: move it out of .*votes")


def test_a_run_without_a_finished_round_is_refused(kept, unprepared, tmp_path):
    told = json.loads((kept / "run.json").read_text())
    (kept / "run.json").write_text(json.dumps({**told, "rounds_done": 0}))
    refused(kept, GONE, tmp_path, ConfigError, "has finished 0 rounds and 1 is needed")


def test_a_run_that_is_being_written_is_refused(kept, unprepared, tmp_path):
    with alone(kept):
        refused(kept, GONE, tmp_path, ConfigError, "is being written by another run")


def test_broken_votes_are_refused(kept, unprepared, tmp_path):
    (kept / "votes" / "round-00001" / "client-site-001.safetensors").write_bytes(b"short")
    refused(kept, GONE, tmp_path, VotesError, "round-00001 is broken .*: restore it from a backup")


def test_other_data_than_the_runs_is_refused(tmp_path, tiny, inline):
    lines = [f"{row % 7},{row % 3},{row % 2}\n" for row in range(90)]
    (tmp_path / "t.csv").write_text("a,b,y\n" + "".join(lines))
    table = {"name": "csv", "path": str(tmp_path / "t.csv"), "target": "y", "private": 40, "proxy": 30, "test": 20}
    run_experiment(tiny(**merged(DEAF, {"data": table})), tmp_path / "run")
    (tmp_path / "t.csv").write_text("a,b,y\n" + "".join(line.replace("6,", "5,") for line in lines))
    refused(tmp_path / "run", GONE, tmp_path, ConfigError, "the data is no longer that of .*: put the files back")


def test_a_folder_in_use_is_left_alone(kept, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="out is no empty folder: name another --out"):
        forget_in(kept, [GONE], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
