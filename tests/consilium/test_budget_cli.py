"""`consilium budget`: what was spent and is left, checked row by row, and what a plan would cost."""

import json
import re
import shlex
import sqlite3

import pytest
from typer.testing import CliRunner

from client.config import PolicySection, PrivacySection, SiteConfig, TrainingSection, load_site, write_site
from client.node import Node
from client.promise import promise_of
from consilium.budget import ledgers_in
from consilium.cli import app
from privacy.events import PoissonGaussian
from privacy.ledger import Ledger, Terms
from simulations.config import load_config
from simulations.experiment import run_experiment
from simulations.preparation import check_config
from simulations.promises import section_of
from strategies.wire import encode_plan

RUNNER = CliRunner()


def invoke(*arguments):
    return RUNNER.invoke(app, ["budget", *map(str, arguments)])


@pytest.fixture
def site(make_sites, make_plan):
    """site.toml of a private site that has given two of its three answers."""
    path = make_sites(1, privacy=PrivacySection(noise_multiplier=3.0, epsilon=4.0, rounds=3, seeded=True))["site-0"]
    for round_ in (1, 2):
        Node.open(path).answer(encode_plan(make_plan(path, round=round_)))
    return path


def test_spent_and_left_are_told_per_run_and_in_all(site):
    done = invoke("show", site, "--format", "json")
    assert done.exit_code == 0, done.output
    (told,) = json.loads(done.stdout)["data"].values()
    # 30 rows, 10 a step, 2 epochs: 6 steps an answer at q = 1/3
    assert (told["answers"], told["answers_left"]) == (2, 1)
    assert told["epsilon_total"] == 4.0
    assert told["epsilon_of_releases"] < told["epsilon_charged"] <= 4.0
    (run,) = told["runs"].values()
    assert run == {
        "answers": 2,
        "events": [["poisson_gaussian", {"sample_rate": 1 / 3, "noise_multiplier": 3.0}, 12]],
    }
    with Ledger.open(site.parent / "ledger.sqlite") as ledger:
        assert (told["ledger_seq"], told["ledger_head"]) == (ledger.head().seq, ledger.head().digest.hex())


def test_show_is_what_a_bare_path_means_and_a_ledger_can_be_named_itself(site):
    texts = [invoke(*words).output for words in (("show", site), (site,), (site.parent / "ledger.sqlite",))]
    assert texts[0].splitlines()[1:] == texts[1].splitlines()[1:] == texts[2].splitlines()[1:]
    assert "SIMULATION, NOT PRIVATE" in texts[0]
    assert "1 more like the last one" in texts[0]
    assert texts[0].rstrip().splitlines()[-1].startswith("next: ")


def test_options_may_stand_before_the_path(site):
    done = invoke("--format", "json", site)
    assert done.exit_code == 0, done.output
    assert list(json.loads(done.stdout)["data"]) == [str(site.parent / "ledger.sqlite")]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("mechanism", ["client-sum", "dp-sgd"])
def test_a_runs_folder_leads_to_its_ledgers_wherever_they_are(tiny, inline, tmp_path, mechanism, kept):
    part = {"name": mechanism, **({"clip": 2.0} if mechanism == "client-sum" else {})}
    promise = {"mechanism": part, "noise_multiplier": 3.0, "ledgers": str(tmp_path / "kept") if kept else ""}
    out = tmp_path / "out"
    run_experiment(tiny(privacy=promise, federation={"rounds": 1}), out)
    names = ["coordinator"] if mechanism == "client-sum" else [f"site-00{number}" for number in range(4)]
    if kept:
        expected = [tmp_path / "kept" / f"{name}.sqlite" for name in names]
    elif mechanism == "client-sum":
        expected = [out / "checkpoint" / "ledger.sqlite"]
    else:
        expected = [out / "checkpoint" / "sites" / name / "ledger.sqlite" for name in names]
    assert ledgers_in(out) == expected
    done = invoke(out, "--format", "json")
    assert [told["answers"] for told in json.loads(done.stdout)["data"].values()] == [1] * len(names)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("run.json", "{}", "run.json holds no privacy ledger: name a .sqlite file"),
        ("study.toml", "[data]\nname = 'digits'\n", "names no `site`: of a study, name the folder of its run"),
        ("broken.toml", "[data", "is no TOML"),
    ],
)
def test_a_file_that_is_no_ledger_is_not_called_a_broken_one(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    done = invoke(tmp_path / name)
    assert done.exit_code == 2
    assert says in done.stderr
    assert "broken (" not in done.stderr
    assert "Field required" not in done.stderr


def test_what_was_drawn_so_far_cannot_be_quoted_as_the_promise(site):
    with Ledger.open(site.parent / "ledger.sqlite") as ledger:
        charged, drawn = ledger.charged()[0], ledger.epsilon()
    assert drawn < charged - 0.1
    (line,) = (line for line in invoke("show", site).output.splitlines() if line.startswith("  charged"))
    said = r"epsilon [\d.]+ at delta 1e-05, for good: stopping early refunds nothing"
    assert re.fullmatch(rf"  charged  {said} \([\d.]+ drawn so far, which is no promise\)", line)


def test_what_goes_on_from_what_and_what_nobody_paid_is_told(make_sites, make_plan):
    path = make_sites(1)["site-0"]
    for round_ in (1, 2):
        Node.open(path).answer(encode_plan(make_plan(path, round=round_)))
    told = {}
    for name, parent in (("old", ""), ("new", "old")):
        section = PrivacySection(noise_multiplier=3.0, epsilon=4.0, rounds=3, seeded=True, ledger=name, parent=parent)
        write_site(path, load_site(path).model_copy(update={"privacy": section}))
        Node.open(path).answer(encode_plan(make_plan(path, round=3 if name == "old" else 4)))
    for name in ("old", "new"):
        (told[name],) = json.loads(invoke("show", path.parent / name, "--format", "json").stdout)["data"].values()
    old, new = (told[name]["data_set"] for name in ("old", "new"))
    relations = [[told[name][key] for key in ("parent", "child", "unpaid_before")] for name in ("old", "new")]
    assert relations == [[None, new, 2], [old, None, 2]]
    assert told["old"]["answers_left"] == 0
    texts = {name: invoke("show", path.parent / name).output for name in ("old", "new")}
    assert f"child    data set {new} goes on from here" in texts["old"]
    assert f"parent   data set {old}: what it has spent is in here" in texts["new"]
    assert all("2 answers went before the first ledger" in text for text in texts.values())


def test_a_ledger_without_relations_says_nothing_of_them(site):
    assert not re.search(r"^  (unpaid|parent|child) ", invoke("show", site).output, re.MULTILINE)


def test_a_ledger_that_was_edited_is_an_integrity_error(site):
    path = site.parent / "ledger.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("DROP TRIGGER rows_no_update")
        db.execute("UPDATE rows SET body = replace(body, '12', '11')")
    done = invoke("show", path)
    assert done.exit_code == 8
    assert "is broken" in done.stderr


@pytest.mark.parametrize("name", ["nothing.sqlite", "", "site.toml"])
def test_what_holds_no_ledger_is_refused_in_a_sentence(tmp_path, make_sites, name):
    path = make_sites(1)["site-0"] if name == "site.toml" else tmp_path / name
    done = invoke("show", path)
    assert done.exit_code == 2
    assert "holds no privacy ledger: name a .sqlite file" in done.stderr


def test_a_ledger_that_only_counts_says_that_nothing_is_accounted_for(tmp_path):
    Ledger.create(tmp_path / "l.sqlite", Terms("record", "zero_out", "count", None, None, None, False)).close()
    assert "0 answers, none of them accounted for" in invoke("show", tmp_path / "l.sqlite").output


# 512 of 12,000 rows a step, 937 steps: privacy.md 4.6 has s = 1.9912 for epsilon 3 at delta 1e-5.
RECORDS = ("--records", 12_000, "--batch-size", 512, "--delta", 1e-5)


def planned(*words):
    done = invoke("plan", *RECORDS, *words, "--format", "json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["data"]


def test_a_plan_finds_the_noise_for_so_many_rounds():
    told = planned("--rounds", 40, "--epsilon", 3)
    # 12,000/512 is 23.4, so an epoch is 24 steps and 40 rounds are 960: a little more noise than for 937
    assert told["steps"] == 960
    assert 1.9912 < told["noise_multiplier"] < 2.03
    assert told["epsilon"] <= 3.0


def test_a_plan_finds_the_rounds_that_an_epsilon_pays_for():
    told = planned("--noise", 1.9912, "--epsilon", 3)
    assert told["rounds"] == 39  # 936 steps; 960 would cost more than 3
    assert told["epsilon"] <= 3.0
    assert planned("--noise", 1.9912, "--rounds", 40)["epsilon"] > 3.0


@pytest.mark.parametrize("words", [(), ("--rounds", 3), ("--rounds", 3, "--noise", 1, "--epsilon", 2)])
def test_a_plan_needs_two_of_three(words):
    done = invoke("plan", *RECORDS, *words)
    assert done.exit_code == 2
    assert "give two of them, the third is computed" in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--records", 100, "--rounds", 3, "--noise", 2, "--delta", 0.5), "delta=0.5"),
        (("--records", 100, "--rounds", 3, "--epsilon", 99), "epsilon=99"),
        (("--records", 100, "--rounds", 3, "--epsilon", 3, "--batch-size", 101), "must be at most --records=100"),
        (
            ("--records", 9, "--rounds", 3, "--epsilon", 3, "--group-size", 10),
            "--group-size=10 must be at most --records=9",
        ),
        (("--records", 100, "--noise", 0.3, "--epsilon", 0.1), "does not pay for one answer"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_a_sentence(words, sentence):
    done = invoke("plan", *words)
    assert done.exit_code == 2
    assert sentence in done.stderr


def test_the_sampled_events_of_a_plan_are_those_that_a_site_pays():
    from privacy.mechanisms.dp_sgd import DpSgdTraining

    told = planned("--rounds", 1, "--noise", 2, "--epochs", 3)
    (event,) = DpSgdTraining(2.0, batch_size=512).fit_events(12_000, 3)
    assert event == PoissonGaussian(told["sample_rate"], 2.0, told["steps"])


@pytest.mark.parametrize("rounds", [("--rounds", 4), ("--noise", 2.7182)])
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--group-size", 3),
        ("--warmup-epochs", 3),
        ("--warmup-epochs", 3, "--restart"),
    ],
)
def test_the_next_command_runs_the_very_plan_whatever_the_file_says(tmp_path, rounds, words):
    """What a site of so many rows pays in the run that is proposed, beside what was planned."""
    given = ("--records", 900, "--batch-size", 60, "--epochs", 2, "--epsilon", 7, "--delta", 1e-6, *rounds, *words)
    told = json.loads(invoke("plan", *given, "--format", "json").stdout)["data"]
    line = invoke("plan", *given).output.splitlines()[-1]
    sets = shlex.split(line.removeprefix("next: consilium run config.toml "))[1::2]
    (tmp_path / "config.toml").write_text(
        "[data]\nname = 'digits'\n[client]\nwarmup_epochs = 9\nrestart = true\nlocal_epochs = 7\n"
        "[privacy]\nepsilon = 1.0\nmechanism = { name = 'pate', teachers = 3 }\n"
    )
    config = load_config(tmp_path / "config.toml", sets)
    check_config(config)
    passes = ("local_epochs", "warmup_epochs", "restart", "batch_size")
    site = SiteConfig(
        **dict.fromkeys(("site", "private", "proxy", "model"), "x"),
        seed=1,
        training=TrainingSection(**{key: getattr(config.client, key) for key in passes}),
        policy=PolicySection(proxy_sha256=["0" * 64], max_rows_per_round=10, max_answers=1000),
        privacy=section_of(config, "x", tmp_path),
    )
    promise = promise_of(site, 900, 10)
    assert promise.total() == (PoissonGaussian(told["sample_rate"], told["noise_multiplier"], told["steps"]),)
    assert (promise.rounds, promise.delta, promise.group_size) == (told["rounds"], 1e-6, told["group_size"])
    assert told["epsilon"] <= promise.epsilon == 7


def test_the_rounds_that_an_epsilon_pays_for_after_a_warm_up_are_no_more_and_no_fewer():
    told = planned("--noise", 1.9912, "--epsilon", 3, "--warmup-epochs", 5)
    assert told["rounds"] == 34  # 39 epochs in all, five of them before the first answer
    assert planned("--noise", 1.9912, "--epsilon", 3, "--warmup-epochs", 5, "--restart")["rounds"] == 6  # of 6 epochs
