"""`consilium audit`: what it prints and writes, and the exit codes that tell the truth."""

import csv
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from client.config import PrivacySection
from consilium import audits
from privacy.accounting import round_up

RUNNER = CliRunner()
APP = typer.Typer()
TINY = """
[federation]
clients = 2
rounds = 2
rows_per_round = 30
workers = 1
device = "cpu"
[data]
name = "digits"
partition = "iid"
proxy = 40
private = 120
test = 40
[strategy]
preset = "mean"
[client]
models = ["linear"]
batch_size = 10
local_epochs = 2
distil_epochs = 0
[student]
model = "linear"
"""
QUICK = ("--shadows", "6", "--labels", "float32,quantised:1", "--student-epochs", "3")


@APP.callback()
def _root():
    """More than one command, as in consilium.cli."""


audits.add_to(APP)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A study in a folder that is the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "study.toml"
    path.write_text(TINY)
    return path


def invoke(*arguments):
    return RUNNER.invoke(APP, ["audit", *map(str, arguments)])


def next_line(done):
    return done.output.strip().splitlines()[-1]


def assert_says_what_it_cannot_show(done):
    assert done.exit_code == 0, done.output
    assert "It can show " in done.output
    assert "It cannot show " in done.output
    assert "A passed audit proves nothing." in done.output


def assert_refused(done, code, says):
    assert done.exit_code == code, done.output
    assert says in done.output
    assert "Traceback" not in done.output


def table(path):
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def test_membership_prints_every_opening_and_attack_and_writes_them_down(file):
    done = invoke("membership", file, *QUICK, "--set", "client.local_epochs=3", "--out", "found")
    assert_says_what_it_cannot_show(done)
    rows = table("found/membership.csv")
    assert [row["seen"] for row in rows] == ["model"] * 4 + ["float32"] * 3 + ["quantised:1"] * 3
    printed = done.output
    for row in rows:
        assert row["attack"] in printed
        assert f"{float(row['auc']):.3f}" in printed
    assert "site-000: 60 rows, 6 models" in printed
    assert "of 180 strangers 0.1 % is less than one" in printed
    assert "nothing is promised, so that nothing bounds an attack" in printed
    assert "to share them is a release" in printed
    assert Path("found/membership.svg").is_file()
    told = json.loads(Path("found/membership.json").read_text())
    assert [each["auc"] for each in told["found"]] == [float(row["auc"]) for row in rows]
    expected = f"next: consilium audit membership {file} --set client.local_epochs=3 --epsilon 3"
    assert next_line(done) == expected


def test_membership_of_a_site_before_anything_is_shared(make_sites, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site = make_sites(1, privacy=PrivacySection(epsilon=3.0, rounds=2))["site-0"]
    done = invoke("membership", "--site", site, *QUICK, "--client", "x")
    assert_refused(done, 2, "is audited by its own file: leave out CONFIG, --client and --set")
    done = invoke("membership", "--site", site, *QUICK)
    assert_says_what_it_cannot_show(done)
    assert "site-0: 30 rows, 6 models" in done.output
    # e^3 .01 + 1e-5 and e^3 .001 + 1e-5
    assert (
        "epsilon 3.0000, delta 1e-05 allow to find 20.1% at 1 % and 2.0% at 0.1 %: no attack found more" in done.output
    )
    assert next_line(done) == f"next: consilium audit one-run --site {site}"
    assert sorted(file.name for file in site.parent.iterdir()) == ["private.safetensors", "site.toml"]


def test_membership_as_json_is_one_object(file):
    done = invoke("membership", file, *QUICK, "--client", "site-001", "--format", "json")
    told = json.loads(done.stdout)
    assert (told["schema"], told["status"], told["code"]) == (1, "ok", 0)
    assert told["data"]["site"] == "site-001"
    assert told["data"]["out"] == "runs/audit-membership-1"
    assert Path("runs/audit-membership-1/membership.json").is_file()


def test_one_run_without_a_promise_says_what_nobody_may_claim(file):
    done = invoke("one-run", file, "--canaries", "60", "--guesses", "40", "--set", "client.local_epochs=10")
    assert_says_what_it_cannot_show(done)
    (row,) = table("runs/audit-one-run-1/one-run.csv")
    assert (row["site"], row["canaries"], row["guesses"], row["epsilon"]) == ("site-000", "60", "40", "")
    claim = f"no training like this one may claim an epsilon below {float(row['epsilon_low']):.4f}"
    assert claim in done.output
    assert next_line(done) == "next: consilium audit mechanism"


def test_one_run_with_dp_sgd_lets_a_kept_claim_stand(file):
    done = invoke("one-run", file, "--canaries", "60", "--guesses", "40", "--epsilon", "2", "--batch-size", "20")
    assert_says_what_it_cannot_show(done)
    assert "the claim stands" in done.output
    (row,) = table("runs/audit-one-run-1/one-run.csv")
    assert (float(row["epsilon"]), row["refuted"]) == (2.0, "False")


@pytest.mark.parametrize("kind", ["membership", "one-run", "mechanism"])
def test_an_audit_that_refutes_a_claim_exits_10_with_its_files_written(file, monkeypatch, kind):
    """Whatever is found counts as more than was claimed: as a gate, the command must not say that all is well."""
    if kind == "mechanism":
        monkeypatch.setattr("privacy.audit.mechanism_audit.MechanismAudit.refutes", lambda audit, claimed: True)
        words = ("mechanism", "--names", "gaussian-output", "--runs", "200")
    else:
        monkeypatch.setattr("simulations.probes.one_run.OneRunFound.refuted", True)
        monkeypatch.setattr("simulations.probes.membership.Membership.refuted", True)
        quick = QUICK if kind == "membership" else ("--canaries", "60", "--guesses", "40")
        words = (kind, file, *quick, "--epsilon", "8", "--batch-size", "20")
    done = invoke(*words, "--out", "text")
    assert done.exit_code == 10, done.output
    assert "refuted" in done.output
    told = invoke(*words, "--out", "json", "--format", "json")
    assert (told.exit_code, json.loads(told.stdout)["code"], json.loads(told.stdout)["status"]) == (10, 10, "error")
    assert Path(f"text/{kind}.csv").is_file()
    assert Path(f"json/{kind}.csv").is_file()


def test_labels_prints_every_site(file):
    done = invoke("labels", file, "--out", "found")
    assert_says_what_it_cannot_show(done)
    assert "Record-level differential privacy does not protect it" in done.output
    rows = table("found/labels.csv")
    assert {row["site"] for row in rows} == {"site-000", "site-001"}
    assert len(rows) == 2 * 10
    for name in ("site-000", "site-001"):
        assert sum(float(row["truth"]) for row in rows if row["site"] == name) == pytest.approx(1.0)
        assert name in done.output
    assert next_line(done) == f"next: consilium audit membership {file}"
    told = json.loads(invoke("labels", file, "--client", "site-001", "--format", "json").stdout)
    assert list(told["data"]["sites"]) == ["site-001"]


def test_mechanism_prints_claims_beside_what_was_measured(file):
    done = invoke("mechanism", "--names", "pate,k-rr", "--runs", "200", "--out", "found")
    assert_says_what_it_cannot_show(done)
    rows = table("found/mechanism.csv")
    assert [(row["mechanism"], row["refuted"]) for row in rows] == [("pate", "False"), ("k-rr", "False")]
    for row in rows:
        assert f"{round_up(float(row['claimed'])):.4f}" in done.output
        assert f"{float(row['epsilon_low']):.4f}" in done.output
    assert next_line(done) == "next: consilium audit one-run --epsilon 3"
    told = json.loads(invoke("mechanism", "--names", "pate", "--runs", "200", "--format", "json").stdout)
    assert [each["mechanism"] for each in told["data"]["mechanisms"]] == ["pate"]


# --- of a run ----------------------------------------------------------------------------------------------------
@pytest.fixture
def run(file, inline):
    """A private run of the study, in the working directory."""
    from simulations.config import load_config
    from simulations.experiment import run_experiment

    sets = ["privacy.epsilon=3", 'privacy.mechanism={name="dp-sgd", batch_size=20}']
    run_experiment(load_config(file, sets), Path("runs/mine"))
    return Path("runs/mine")


def test_an_audit_of_a_runs_folder_is_of_its_promise_and_is_shown_in_its_report(run):
    assert "<h2>Audits</h2>" not in (run / "report.html").read_text()
    done = invoke("membership", run, *QUICK)
    assert_says_what_it_cannot_show(done)
    assert "Results in runs/mine/audits/membership-1: open runs/mine/audits/membership-1/membership.svg" in done.output
    assert f"The run's report shows them: open {Path('runs/mine/report.html').resolve()}" in done.output
    told = json.loads((run / "audits/membership-1/membership.json").read_text())
    assert (told["epsilon"], told["mechanism"], told["wanted"]) == (3.0, "dp-sgd", None)
    page = (run / "report.html").read_text()
    assert "<h2>Audits</h2>" in page
    for each in told["found"]:
        assert f"{each['auc']:.3f} ({each['auc_low']:.3f} to {each['auc_high']:.3f})" in page
        for key in ("tpr_1", "tpr_01"):
            shown = [f"{100 * each[key + end]:.1f} %" for end in ("", "_low", "_high")]
            assert "{} ({} to {})".format(*shown) in page
    # e^3 .01 + 1e-5 and e^3 .001 + 1e-5
    assert "most that epsilon 3 at delta 1e-05 allows" in page
    assert (
        "allows to find 20.1 % of the members at 1 % false alarms and 2.0 % at 0.1 %. No attack refutes that." in page
    )
    assert told["cannot_show"] in page.replace("&#39;", "'")
    assert "to pass this page on releases them" in page

    again = json.loads(invoke("labels", run, "--format", "json").stdout)["data"]
    assert (again["out"], again["report"]) == ("runs/mine/audits/labels-1", str((run / "report.html").resolve()))
    own = invoke("one-run", run, "--canaries", "20", "--guesses", "10", "--epsilon", "2", "--batch-size", "20")
    assert own.exit_code == 0, own.output
    page = (run / "report.html").read_text()
    assert page.index("labels-1/labels.json") < page.index("membership-1/membership.json")
    assert "Its models trained by DP-SGD with epsilon 2, whatever this run promises." in page


def test_an_audit_elsewhere_says_how_a_report_would_show_it(file):
    done = invoke("labels", file, "--out", "found")
    assert "A run's report shows them if its folder is audited: consilium audit labels runs/..." in done.output
    assert json.loads(invoke("labels", file, "--format", "json").stdout)["data"]["report"] is None


def test_a_run_that_has_not_ended_is_audited_and_has_no_report_yet(run):
    (run / "run.json").unlink()
    (run / "report.html").unlink()
    told = json.loads(invoke("labels", run, "--format", "json").stdout)["data"]
    assert (told["out"], told["report"]) == ("runs/mine/audits/labels-1", None)
    assert not (run / "report.html").exists()


def test_a_folder_that_is_no_run_is_refused_and_a_run_is_not_changed_on_the_way(run):
    Path("empty").mkdir()
    assert_refused(invoke("labels", "empty"), 2, "empty holds no run: name a run's folder, or a study's file")
    done = invoke("labels", run, "--set", "client.local_epochs=3")
    assert_refused(done, 2, "runs/mine is audited as it was run: leave out --set, or name the study's file")
    assert list(Path("empty").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("membership", "study.toml", "--shadows", "7"), "shadows=7 must be even and at least 6"),
        (("membership", "study.toml", "--labels", "zip"), "labels 'zip': unknown codec 'zip'"),
        (("membership", "study.toml", "--client", "nobody"), "no client is called 'nobody'"),
        (
            ("membership", "study.toml", "--client", "site-000,site-001"),
            "names several clients, and this audit attacks",
        ),
        (("one-run", "study.toml", "--client", "site-000,site-001"), "names several clients, and this audit attacks"),
        (("membership", "study.toml", "--rounds", "3"), "--rounds 3 goes with --site"),
        (("membership", "study.toml", "--delta", "1e-6"), "go with --epsilon: give it, or leave them out"),
        (("membership", "--site", "nowhere.toml"), "nowhere.toml cannot be read"),
        (("one-run", "study.toml", "--guesses", "3"), "guesses=3 must be even, from 2 to 500"),
        (("labels", "nowhere.toml"), "nowhere.toml cannot be read"),
        (("mechanism", "--names", "magic"), "unknown mechanism 'magic'; known: client-sum"),
    ],
)
def test_what_cannot_be_audited_exits_with_2_and_leaves_nothing(file, arguments, says):
    done = invoke(*arguments, "--out", "found")
    assert_refused(done, 2, says)
    assert not Path("found").exists()
