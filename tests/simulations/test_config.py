"""An experiment's file: one line is a whole experiment, and every mistake is one sentence."""

from pathlib import Path

import pytest

import simulations
from client.config import PartSection
from simulations.config import ConfigError, ExperimentConfig, load_config, parse_config
from strategies.presets import CAPABILITIES, PRESETS

CONFIGS = Path(simulations.__file__).parent / "configs"


def parse(**sections):
    return parse_config(sections, base=".")


def test_one_line_is_a_whole_experiment(tmp_path):
    (tmp_path / "c.toml").write_text('[data]\nname = "digits"\n')
    config = load_config(tmp_path / "c.toml")
    assert config == parse()
    assert (config.federation.rounds, config.strategy.aggregator.name) == (10, "era")


def test_what_was_resolved_is_read_back_as_the_same():
    config = parse(strategy={"preset": "fedmd"}, client={"models": ["mlp", "linear"]}, data={"proxy": 0.3})
    assert parse_config(config.resolved(), base="/") == config


SECTIONS = ("federation", "strategy", "client", "student")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_fills_in_and_never_overrides(name):
    plain = parse(strategy={"preset": name})
    for section in SECTIONS:
        for key, value in getattr(PRESETS[name], section).items():
            found = getattr(getattr(plain, section), key)
            assert value == ({"name": found.name, **found.settings} if isinstance(found, PartSection) else found)
    own = parse(
        federation={"rounds": 7, "rows_per_round": 11},
        strategy={"preset": name, "aggregator": "mean", "uplink": "float16", "downlink": "float16", "choice": "epoch"},
        client={"distil_loss": "kl", "public_epochs": 1, "local_epochs": 3, "selector": "none", "table_weight": 0.5},
        student={"distil_loss": "kl", "distil_epochs": 4, "speaks": False},
    )
    assert (own.federation.rounds, own.federation.rows_per_round) == (7, 11)
    assert (own.strategy.aggregator.name, own.strategy.aggregator.settings) == ("mean", {})
    assert (own.strategy.uplink, own.strategy.downlink, own.strategy.choice) == ("float16", "float16", "epoch")
    assert (own.client.distil_loss, own.client.public_epochs, own.client.local_epochs) == ("kl", 1, 3)
    assert (own.client.selector, own.client.table_weight) == (None, 0.5)
    assert (own.student.distil_loss, own.student.distil_epochs, own.student.speaks) == ("kl", 4, False)


# What each paper says, as far as our form has it; the numbers are those of the design reference, sections 2.1 to 2.9.
PAPERS = {
    "mean": {"strategy.aggregator": {"name": "mean"}},
    "guarded": {
        "strategy.aggregator": {
            "name": "cosine-filter",
            "weight": {"name": "entropy", "cap": 0.2},
            "then": {"name": "enhanced-era", "exponent": 2.0},
        }
    },
    "experts": {
        "strategy.aggregator": {"name": "sample-weighted", "pool": "probabilities"},
        "client.selector": {"name": "kmeans-ratio", "clusters": 200, "quantile": 0.0},
    },
    # ERA with T = 0.1, 1,000 rows, SGD 0.1, 5 + 5 epochs of batches of 50
    "ds-fl": {
        "strategy.aggregator": {"name": "era", "temperature": 0.1},
        "federation.rows_per_round": 1000,
        "client.optimizer": "sgd",
        "client.lr": 0.1,
        "client.distil_epochs": 5,
        "client.local_epochs": 5,
        "client.batch_size": 50,
        "strategy.choice": "random",
    },
    # public set for at most 20 epochs, then the private rows for at most 25; consensus of logits, MAE
    "fedmd": {
        "strategy.aggregator": {"name": "logit-mean"},
        "client.public_epochs": 20,
        "client.warmup_epochs": 25,
        "client.distil_loss": "mae",
        "student.distil_loss": "mae",
    },
    # D = 50; beta = 2 at Dirichlet 0.05; the rest as DS-FL
    "scarlet": {
        "strategy.aggregator": {"name": "enhanced-era", "exponent": 2.0},
        "strategy.cache_rounds": 50,
        "federation.rows_per_round": 1000,
        "client.lr": 0.1,
        "client.distil_epochs": 5,
        "client.local_epochs": 5,
        "client.batch_size": 50,
    },
    # one fixed subset, 1 bit up and 1 bit down, both as differences; the student's answers go down
    "cfd": {
        "strategy.aggregator": {"name": "mean"},
        "strategy.uplink": "quantised:1+delta+entropy",
        "strategy.downlink": "quantised:1+delta+entropy",
        "strategy.choice": "fixed",
        "student.speaks": True,
        "student.restart": False,
    },
    # the 25 % quantile of the density ratio; one voter is enough for a row
    "selective-fd": {
        "strategy.aggregator": {"name": "mean", "ambiguity": 1.0},
        "strategy.row_quorum": 1,
        "client.selector": {"name": "kulsif", "quantile": 0.25},
    },
    # gamma = 1
    "feddistill": {"strategy.aggregator": {"name": "per-class"}, "client.table_weight": 1.0},
    "cronus": {"strategy.aggregator": {"name": "cronus"}},
    "fed-et": {"strategy.aggregator": {"name": "variance"}},
    # 100 epochs at the clients and for the final student; argmax votes, the label that wins
    "one-shot": {
        "strategy.aggregator": {"name": "hard-vote", "soft": False},
        "federation.rounds": 1,
        "client.local_epochs": 100,
        "student.distil_epochs": 100,
    },
    "comet": {"strategy.aggregator": {"name": "clustered"}},
    "expguard": {"strategy.aggregator": {"name": "expguard"}},
}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_has_its_papers_numbers(name):
    resolved = parse(strategy={"preset": name}).resolved()
    for key, value in PAPERS[name].items():
        section, _, field = key.partition(".")
        assert resolved[section][field] == value, key


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_has_a_configuration_of_the_benchmark(name):
    config = load_config(CONFIGS / f"mnist-{name}.toml")
    assert config.strategy.preset == name
    assert (config.federation.clients, config.data.partition, config.data.shards_per_client) == (20, "shards", 2)
    assert config.federation.rounds == (1 if name == "one-shot" else 40)


@pytest.mark.parametrize(("engine", "preset"), [("in-process", "ds-fl"), ("deployment", "guarded")])
def test_deployments_begin_guarded_and_simulations_with_ds_fl(engine, preset):
    config = parse(federation={"engine": engine})
    assert (config.strategy.preset, config.strategy.aggregator) == (
        preset,
        parse(strategy={"preset": preset}).strategy.aggregator,
    )
    named = parse(federation={"engine": engine}, strategy={"preset": "mean"})
    assert (named.strategy.preset, named.strategy.aggregator.name) == ("mean", "mean")
    # what was resolved names its preset: read back on another engine, it is the same
    moved = config.resolved()
    moved["federation"]["engine"] = "in-process"
    assert parse_config(moved, base="/").strategy == config.strategy


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"federation": {"mode": "async"}}, "preset 'one-shot' does not go with async: there is no later round"),
    ],
)
def test_what_a_preset_cannot_is_refused_with_its_reason(sections, says):
    with pytest.raises(ConfigError, match=says):
        parse(strategy={"preset": "one-shot"}, **sections)
    parse(strategy={"preset": "ds-fl"}, **sections)


def test_presets_refuse_capabilities_that_there_are():
    assert {name for preset in PRESETS.values() for name in preset.refuses} <= set(CAPABILITIES)


def test_settings_of_a_rule_alone_change_the_presets_rule(tmp_path):
    (tmp_path / "c.toml").write_text("")
    rule = load_config(tmp_path / "c.toml", ["strategy.aggregator.temperature=0.3"]).strategy.aggregator
    assert (rule.name, rule.settings) == ("era", {"temperature": 0.3})


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("federation.rounds=3", "federation", "rounds", 3),
        ("data.proxy=0.5", "data", "proxy", 0.5),
        ("data.proxy=50", "data", "proxy", 50),
        ("data.partition=shards", "data", "partition", "shards"),
        ('client.models=["mlp", "linear"]', "client", "models", ("mlp", "linear")),
        ("baselines.pooled=true", "baselines", "pooled", True),
    ],
)
def test_overrides_are_toml_and_a_bare_word_is_text(tmp_path, override, section, key, value):
    (tmp_path / "c.toml").write_text("[federation]\nrounds = 7\n")
    config = load_config(tmp_path / "c.toml", [override])
    assert getattr(getattr(config, section), key) == value


def test_an_aggregator_named_by_an_override_can_be_given_settings(tmp_path):
    (tmp_path / "c.toml").write_text("")
    overrides = ["strategy.aggregator=enhanced-era", "strategy.aggregator.exponent=3"]
    rule = load_config(tmp_path / "c.toml", overrides).strategy.aggregator
    assert (rule.name, rule.settings) == ("enhanced-era", {"exponent": 3})


def test_settings_of_a_part_alone_change_the_presets_part():
    config = parse(strategy={"preset": "selective-fd"}, client={"selector": {"quantile": 0.125}})
    assert config.client.selector is not None
    assert (config.client.selector.name, config.client.selector.settings) == ("kulsif", {"quantile": 0.125})
    named = parse(strategy={"preset": "selective-fd"}, client={"selector": "certainty"}).client.selector
    assert named is not None
    assert (named.name, named.settings) == ("certainty", {})


@pytest.mark.parametrize("word", ["nan", "inf", "-inf"])
def test_a_word_that_toml_takes_for_no_number_is_text(tmp_path, word):
    # an attack is called nan, and no setting may be infinite
    (tmp_path / "c.toml").write_text("")
    attack = load_config(tmp_path / "c.toml", ["attack.name=nan", f"attack.value={word}"]).attack
    assert attack is not None
    assert (attack.name, attack.settings) == ("nan", {"value": word})
    with pytest.raises(ConfigError, match=f"client.lr = '{word}'"):
        load_config(tmp_path / "c.toml", [f"client.lr={word}"])


def test_attackers_are_a_number_a_share_or_names():
    for clients in (2, 0.25, ("site-001", "site-003")):
        attack = parse(
            attack={"name": "lie", "clients": list(clients) if isinstance(clients, tuple) else clients}
        ).attack
        assert attack is not None
        assert attack.clients == clients


def write(folder, **files):
    """Files name.toml with this content; returns the last one's path."""
    for name, content in files.items():
        path = folder / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return path


def test_a_file_that_extends_another_changes_its_keys_and_keeps_the_rest(tmp_path):
    base = '[federation]\nrounds = 7\nseed = 3\n[client]\nmodels = ["mlp", "linear"]\nlr = 0.5\n'
    path = write(
        tmp_path, base=base, own='extends = "base.toml"\n[federation]\nrounds = 9\n[client]\nmodels = ["mlp"]\n'
    )
    config = load_config(path)
    assert (config.federation.rounds, config.federation.seed) == (9, 3)
    assert (config.client.models, config.client.lr) == (("mlp",), 0.5)
    assert load_config(path, ["federation.rounds=2"]).federation.rounds == 2


@pytest.mark.parametrize(
    ("base", "own", "rule", "settings"),
    [
        # settings alone change the part that stands there, whoever named it ...
        ('aggregator = "enhanced-era"', "[strategy.aggregator]\nexponent = 3", "enhanced-era", {"exponent": 3}),
        (
            '[strategy.aggregator]\nname = "mean"\nthen = "era"',
            "[strategy.aggregator]\nambiguity = 1.5",
            "mean",
            {"then": "era", "ambiguity": 1.5},
        ),
        # ... and a name replaces it with all its settings
        ('[strategy.aggregator]\nname = "era"\ntemperature = 0.5', 'aggregator = "median"', "median", {}),
    ],
)
def test_a_part_is_changed_by_its_settings_and_replaced_by_a_name(tmp_path, base, own, rule, settings):
    path = write(tmp_path, base=f"[strategy]\n{base}\n", own=f'extends = "base.toml"\n[strategy]\n{own}\n')
    found = load_config(path).strategy.aggregator
    assert (found.name, found.settings) == (rule, settings)


def test_a_chain_of_files_is_followed_and_the_nearest_wins(tmp_path):
    files = {f"f{number}": f'extends = "f{number - 1}.toml"\n' for number in range(1, 9)}
    path = write(tmp_path, f0="[federation]\nrounds = 3\nseed = 4\n", **files)
    assert load_config(path).federation.rounds == 3
    write(tmp_path, f5='extends = "f4.toml"\n[federation]\nrounds = 5\n')
    config = load_config(path)
    assert (config.federation.rounds, config.federation.seed) == (5, 4)


@pytest.mark.parametrize("from_here", [False, True])
def test_a_data_path_starts_at_the_file_that_says_it(tmp_path, monkeypatch, from_here):
    base = '[data]\nname = "csv"\npath = "../rows.csv"\ntarget = "y"\n'
    write(tmp_path / "shared", base=base)
    path = write(tmp_path / "mine", own='extends = "../shared/base.toml"\n')
    monkeypatch.chdir(tmp_path)  # a path as one types it: relative to the working directory
    named = path.relative_to(tmp_path) if from_here else path
    assert load_config(named).data.path == str(tmp_path / "rows.csv")
    write(tmp_path / "mine", own='extends = "../shared/base.toml"\n[data]\npath = "own.csv"\n')
    assert load_config(named).data.path == str(tmp_path / "mine" / "own.csv")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('extends = "nowhere.toml"', r"nowhere\.toml cannot be read .*: name a configuration file"),
        ("extends = 3", r"own\.toml: extends=3 must name another file, at most 8 deep"),
        ('extends = "own.toml"', r"extends='own.toml' must name another file, at most 8 deep"),
        ('extends = "broken.toml"', r"broken\.toml is no TOML"),
        ('federation = 3\nextends = "base.toml"', "federation = 3"),
    ],
)
def test_what_cannot_be_extended_is_refused(tmp_path, content, says):
    path = write(tmp_path, broken="rounds = ", base="[federation]\nrounds = 2\n", own=content)
    with pytest.raises(ConfigError, match=says):
        load_config(path)


def test_paths_start_at_the_files_own_folder(tmp_path):
    (tmp_path / "c.toml").write_text('[data]\nname = "csv"\npath = "mine.csv"\n')
    assert load_config(tmp_path / "c.toml").data.path == str(tmp_path / "mine.csv")


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"federation": {"roundss": 3}}, r"unknown key 'federation.roundss'; known in \[federation\]: clients, device"),
        ({"federated": {}}, "unknown key 'federated'; known sections: attack, baselines, client, data, federation"),
        ({"federation": {"rounds": 0}}, "federation.rounds = 0: input should be greater than or equal to 1"),
        ({"federation": {"quorum": 1.5}}, "federation.quorum = 1.5: .*less than or equal to 1"),
        ({"federation": {"seed": "x"}}, "federation.seed = 'x': must be a whole number"),
        ({"federation": {"engine": "ray"}}, "federation.engine = 'ray': .*'in-process', 'flower-simulation'"),
        ({"data": {"name": "imagenet"}}, "data.name = 'imagenet': .*'digits'"),
        ({"data": {"alpha": float("inf")}}, "data.alpha = inf"),
        ({"data": {"proxy": 1.5}}, "data.proxy: 1.5 must be a number of rows, 1 or more, or a share"),
        ({"data": {"proxy": 0}}, "data.proxy: 0 must be"),
        ({"data": {"private": True}}, "data.private: True must be"),
        ({"client": {"models": []}}, "client.models"),
        ({"client": {"lr": 0.0}}, "client.lr = 0.0: .*greater than 0"),
        ({"client": {"lr": float("nan")}}, "client.lr = nan"),
        ({"strategy": {"preset": "fedavg"}}, "unknown preset 'fedavg'; known: cfd, comet, cronus, ds-fl, exp"),
        ({"strategy": {"row_quorum": 0}}, "strategy.row_quorum: 0 must be a number of clients, 1 or more, or a share"),
        ({"strategy": {"row_quorum": True}}, "strategy.row_quorum: True must be"),
        ({"strategy": {"cache_rounds": -1}}, "strategy.cache_rounds = -1: .*greater than or equal to 0"),
        ({"strategy": {"choice": "newest"}}, "strategy.choice = 'newest': .*'disagreement'"),
        ({"strategy": {"codec": "float16"}}, r"unknown key 'strategy.codec'; known in \[strategy\]: .*uplink"),
        ({"federation": {"mode": "late"}}, "federation.mode = 'late': .*'sync' or 'async'"),
        ({"federation": {"staleness": -1.0}}, "federation.staleness = -1.0"),
        ({"federation": {"patience": 0}}, "federation.patience = 0"),
        ({"client": {"selector": {"quantile": 0.1}}}, "client.selector.name must be given"),
        ({"client": {"table_weight": -1.0}}, "client.table_weight = -1.0"),
        ({"attack": {"clients": 2}}, "attack.name must be given"),
        ({"attack": {"name": "lie", "clients": 0}}, "attack.clients: 0 must be a number of clients, 1 or more"),
        ({"attack": {"name": "lie", "clients": 1.5}}, "attack.clients: 1.5 must be"),
        ({"attack": {"name": "lie", "clients": []}}, r"attack.clients: \[\] must be"),
        ({"stragglers": {"share": 1.5}}, "stragglers.share = 1.5: .*less than or equal to 1"),
        ({"stragglers": {"rounds": 0}}, "stragglers.rounds = 0"),
        ({"stragglers": {"shares": 0.5}}, r"unknown key 'stragglers.shares'; known in \[stragglers\]: rounds, share"),
        ({"strategy": 3}, "strategy = 3"),
        ({"strategy": {"preset": [1]}}, "unknown preset"),
        ({"federation": {"timeout_s": 1e12}}, "federation.timeout_s = 1000000000000.0"),
        ({"federation": 3}, "federation = 3"),
    ],
)
def test_every_mistake_is_a_sentence_with_name_value_and_bound(sections, says):
    with pytest.raises(ConfigError, match=says):
        parse(**sections)


def test_a_setting_below_a_number_is_refused(tmp_path):
    (tmp_path / "c.toml").write_text("[federation]\nclients = 3\n")
    with pytest.raises(ConfigError, match=r"federation\.clients is 3 and has no settings"):
        load_config(tmp_path / "c.toml", ["federation.clients.x=1"])


@pytest.mark.parametrize("override", ["rounds=3", "federation.rounds", "=3", "federation.=3"])
def test_overrides_of_another_form_are_refused(tmp_path, override):
    (tmp_path / "c.toml").write_text("")
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load_config(tmp_path / "c.toml", [override])


@pytest.mark.parametrize("content", [b"rounds = ", b"\xff\xfe\x00", b"[federation\n"])
def test_files_that_are_no_toml_are_refused(tmp_path, content):
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(ConfigError, match="is no TOML"):
        load_config(tmp_path / "c.toml")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "no.toml")


def test_every_default_stands_in_one_place():
    sections = {
        "federation",
        "data",
        "strategy",
        "client",
        "student",
        "baselines",
        "attack",
        "stragglers",
        "newcomers",
        "privacy",
    }
    assert set(ExperimentConfig.model_fields) == sections
    assert set(parse().resolved()) == set(ExperimentConfig.model_fields)
