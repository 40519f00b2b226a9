"""An experiment's file: one line is a whole experiment, and every mistake is one sentence."""

import pytest

from simulations.config import ConfigError, ExperimentConfig, load_config, parse_config
from strategies.presets import PRESETS


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


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_fills_in_and_never_overrides(name):
    plain = parse(strategy={"preset": name})
    assert plain.strategy.aggregator.name == PRESETS[name].strategy["aggregator"]["name"]
    assert plain.client.distil_loss == PRESETS[name].client["distil_loss"]
    own = parse(
        strategy={"preset": name, "aggregator": "mean", "codec": "float16"},
        client={"distil_loss": "kl", "public_epochs": 1, "warmup_epochs": 2},
    )
    assert (own.strategy.aggregator.name, own.strategy.codec) == ("mean", "float16")
    assert (own.client.distil_loss, own.client.public_epochs, own.client.warmup_epochs) == ("kl", 1, 2)


def test_fedmd_is_four_phases_with_the_papers_numbers():
    client = parse(strategy={"preset": "fedmd"}).client
    assert (client.public_epochs, client.warmup_epochs, client.distil_loss) == (20, 25, "mae")


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


def test_paths_start_at_the_files_own_folder(tmp_path):
    (tmp_path / "c.toml").write_text('[data]\nname = "csv"\npath = "mine.csv"\n')
    assert load_config(tmp_path / "c.toml").data.path == str(tmp_path / "mine.csv")


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"federation": {"roundss": 3}}, r"unknown key 'federation.roundss'; known in \[federation\]: clients, device"),
        ({"federated": {}}, "unknown key 'federated'; known sections: baselines, client, data, federation"),
        ({"federation": {"rounds": 0}}, "federation.rounds = 0: input should be greater than or equal to 1"),
        ({"federation": {"quorum": 1.5}}, "federation.quorum = 1.5: .*less than or equal to 1"),
        ({"federation": {"seed": "x"}}, "federation.seed = 'x': .*integer"),
        ({"federation": {"engine": "ray"}}, "federation.engine = 'ray': .*'in-process', 'flower-simulation'"),
        ({"data": {"name": "imagenet"}}, "data.name = 'imagenet': .*'digits'"),
        ({"data": {"alpha": float("inf")}}, "data.alpha = inf"),
        ({"data": {"proxy": 1.5}}, "data.proxy: 1.5 must be a number of rows, 1 or more, or a share"),
        ({"data": {"proxy": 0}}, "data.proxy: 0 must be"),
        ({"data": {"private": True}}, "data.private: True must be"),
        ({"client": {"models": []}}, "client.models"),
        ({"client": {"lr": 0.0}}, "client.lr = 0.0: .*greater than 0"),
        ({"client": {"lr": float("nan")}}, "client.lr = nan"),
        ({"strategy": {"preset": "fedavg"}}, "unknown preset 'fedavg'; known: ds-fl, fedmd, mean"),
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
    assert set(ExperimentConfig.model_fields) == {"federation", "data", "strategy", "client", "student", "baselines"}
    assert set(parse().resolved()) == set(ExperimentConfig.model_fields)
