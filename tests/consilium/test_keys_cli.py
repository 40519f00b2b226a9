"""`consilium keys`: three owners make their keys and one registry, and their sites know each other from then on."""

import hashlib
import json
import os
import re
import stat

import pytest
from typer.testing import CliRunner

from client.config import SiteConfigError, load_site, write_site
from client.identity import IDENTITY, peers_of, read_identity, read_registry
from client.node import Node
from consilium.cli import app
from privacy.secure_sum.keys import identity_key

RUNNER = CliRunner()


def invoke(*arguments):
    return RUNNER.invoke(app, ["keys", *map(str, arguments)])


@pytest.fixture
def sites(make_sites):
    """site.toml of three sites."""
    return make_sites(3)


@pytest.fixture
def lines(sites):
    """The public files of three sites that have made their keys."""
    for path in sites.values():
        assert invoke("new", path.parent).exit_code == 0
    return [path.parent / f"{name}.pub" for name, path in sites.items()]


def name_in(path, **told):
    """Write files' names into a site's policy."""
    config = load_site(path)
    write_site(path, config.model_copy(update={"policy": config.policy.model_copy(update=told)}))
    return load_site(path)


def test_three_owners_make_keys_and_a_registry_and_their_sites_open(sites, lines, tmp_path):
    out = tmp_path / "registry.json"
    done = invoke("registry", *lines, "--out", out)
    assert done.exit_code == 0, done.output
    assert hashlib.sha256(out.read_bytes()).hexdigest() in done.output
    for said in (
        'sum_registry = "registry.json"',
        'sum_identity = "identity.key"',
        "sum_threshold = 3",
    ):  # 2 N / 3, and 3 at least
        assert said in done.output
    for name, path in sites.items():
        (path.parent / "registry.json").write_bytes(out.read_bytes())
        peers = peers_of(name_in(path, sum_registry="registry.json", sum_identity=IDENTITY), path.parent)
        assert peers.registry == read_registry(out)
        assert identity_key(peers.identity) == peers.registry[name]
        Node.open(path)


def test_a_private_key_is_its_owners_alone_and_is_printed_nowhere(sites):
    folder = sites["site-0"].parent
    done = invoke("new", folder)
    told = done.output.splitlines()
    assert stat.S_IMODE((folder / IDENTITY).stat().st_mode) == 0o600
    assert f"site-0 {identity_key(read_identity(folder / IDENTITY)).hex()}" in told
    assert (folder / "site-0.pub").read_text().strip() in told
    assert read_identity(folder / IDENTITY).hex() not in done.output
    assert told[-1].startswith("next: consilium keys registry ")


def test_as_json_it_is_one_object(sites, lines, tmp_path):
    done = invoke("registry", *lines, "--out", tmp_path / "r.json", "--format", "json")
    told = json.loads(done.stdout)
    assert (told["status"], told["code"]) == ("ok", 0)
    assert told["data"]["sites"] == json.loads((tmp_path / "r.json").read_text())
    (sites["site-1"].parent / IDENTITY).unlink()
    made = json.loads(invoke("new", sites["site-1"].parent, "--format", "json").stdout)["data"]
    assert (made["site"], len(made["public"])) == ("site-1", 64)


def test_the_order_of_the_lines_changes_no_byte(lines, tmp_path):
    for name, order in (("a", lines), ("b", lines[::-1])):
        invoke("registry", *order, "--out", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_key_that_is_there_is_kept_and_its_line_written_again(sites, lines):
    path = sites["site-0"].parent / IDENTITY
    before, line = path.read_bytes(), lines[0].read_text()
    lines[0].unlink()
    done = invoke("new", path.parent)
    assert done.exit_code == 0
    assert f"kept {path}" in done.output
    assert (path.read_bytes(), lines[0].read_text()) == (before, line)
    path.write_text("something else")
    done = invoke("new", path.parent)
    assert done.exit_code == 2
    assert "is no Ed25519 key in PEM" in done.stderr
    assert path.read_text() == "something else"


def test_a_folder_without_a_site_is_refused(tmp_path):
    done = invoke("new", tmp_path)
    assert done.exit_code == 2
    assert "name the site's file" in done.stderr
    assert list(tmp_path.iterdir()) == []


def spoilt(lines, what):
    if what == "the same file twice":
        return [*lines, lines[0]]
    if what == "one key under two names":
        other = lines[1].read_text().split()
        lines[1].write_text(f"{other[0]} {lines[0].read_text().split()[1]}\n")
    if what == "no line":
        lines[1].write_text("site-1 and no key\n")
    if what == "no text":
        lines[1].write_bytes(b"\xff\xfe")
    if what == "no file":
        lines[1].unlink()
    return lines[:2] if what == "two sites" else lines


SPOILT = {
    "the same file twice": "hold the name site-0 twice: every site has one name and one key",
    "one key under two names": "hold the key .* twice: every site has one name and one key",
    "no line": "is no site's public line, a name and 64 hex digits",
    "no text": "is no text: name another file",
    "no file": r"cannot be read \(No such file or directory\): name a file that is there",
    "two sites": "list 2 sites and a sum takes 3 or more",
}


@pytest.mark.parametrize("what", SPOILT)
def test_lines_that_make_no_registry_are_refused_with_a_sentence(lines, tmp_path, what):
    done = invoke("registry", *spoilt(lines, what), "--out", tmp_path / "registry.json")
    assert done.exit_code == 2
    assert re.search(SPOILT[what], done.stderr)
    assert not (tmp_path / "registry.json").exists()


KEY = "ab" * 32
REGISTRIES = {
    "no JSON": ("{", "is no registry, a JSON object"),
    "a list": (f'[["a", "{KEY}"]]', "is no registry, a JSON object"),
    "short keys": ('{"site-0": "ab"}', "is no registry, a JSON object"),
    "a name twice": (f'{{"a": "{KEY}", "b": "{"cd" * 32}", "c": "{"ef" * 32}", "a": "{"01" * 32}"}}', "name a twice"),
    "a key twice": (f'{{"a": "{KEY}", "b": "{KEY}", "c": "{"ef" * 32}"}}', "key .* twice"),
    "two sites": (f'{{"a": "{KEY}", "b": "{"cd" * 32}"}}', "list 2 sites"),
    "nobody": ("{}", "list 0 sites"),
    "another site's": (
        f'{{"a": "{KEY}", "b": "{"cd" * 32}", "c": "{"ef" * 32}"}}',
        "does not list the public key of policy.sum_identity as that of 'site-0'",
    ),
}


@pytest.mark.parametrize("what", REGISTRIES)
def test_a_registry_that_is_none_or_not_this_sites_keeps_the_site_closed(sites, lines, what):
    text, said = REGISTRIES[what]
    (sites["site-0"].parent / "registry.json").write_text(text)
    name_in(sites["site-0"], sum_registry="registry.json", sum_identity=IDENTITY)
    with pytest.raises(SiteConfigError, match=said):
        Node.open(sites["site-0"])


def test_one_file_without_the_other_or_a_threshold_above_the_registry_keeps_the_site_closed(sites, lines, tmp_path):
    path = sites["site-0"]
    invoke("registry", *lines, "--out", path.parent / "registry.json")
    for told, said in (
        ({"sum_registry": "registry.json"}, "policy.sum_registry needs policy.sum_identity beside it"),
        ({"sum_registry": "", "sum_identity": IDENTITY}, "policy.sum_identity needs policy.sum_registry beside it"),
        ({"sum_registry": "registry.json", "sum_threshold": 4}, "lists 3 sites and policy.sum_threshold=4 must stay"),
        ({"sum_threshold": 3, "sum_registry": "elsewhere.json"}, "elsewhere.json cannot be read"),
    ):
        name_in(path, **told)
        with pytest.raises(SiteConfigError, match=said):
            Node.open(path)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_key_that_others_can_read_or_that_is_none_keeps_the_site_closed(sites, lines):
    path = sites["site-0"].parent / IDENTITY
    path.chmod(0o640)
    with pytest.raises(SiteConfigError, match="has mode 640 and others can read it: chmod 600"):
        read_identity(path)
    path.chmod(0o600)
    path.write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(SiteConfigError, match="is no Ed25519 key in PEM without a password"):
        read_identity(path)
    path.unlink()
    with pytest.raises(SiteConfigError, match="`consilium keys new` makes a site's key"):
        read_identity(path)
