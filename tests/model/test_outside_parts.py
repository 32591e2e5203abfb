"""Rules and readers from modules outside the package: what is loaded, and whose runs their files belong to."""

import dataclasses
import json
import shutil

import pytest
import torch

from ddl import config as config_module
from ddl.config import ConfigError, load_scale
from ddl.layout import ROOT
from ddl.model.language_model import LanguageModel
from ddl.model.run_files import ModelFileError, load_model, save_model

RULE = '''
from ddl.model.readers import Reader
from ddl.model.residual import Additive

class Louder(Additive):
    """X' = X + 2 h."""

    def forward(self, X, x_in, c, h):
        return X + 2 * h

class Quiet(Reader):
    """The state as it is."""

helper = Louder
number = 3
'''
TOKENS = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def outside(tmp_path, monkeypatch, request):
    """The name of a module of its own with the rule, which designs of a copy of variants.yaml name."""
    name = f"rules_of_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(RULE)
    variants = tmp_path / "variants.yaml"
    entries = {"baseline": {"label": "Baseline", "family": "paper", "published": "Baseline", "model": {}}}
    for slug, settings in (
        ("louder", {"residual": f"{name}:Louder"}),
        ("quiet", {"reader": f"{name}:Quiet"}),
        ("number", {"residual": f"{name}:number"}),
        ("absent", {"residual": f"{name}:Absent"}),
        ("nowhere", {"residual": "no_such_package.rules:Rule"}),
        ("compiled", {"residual": "itertools:count"}),
    ):
        entries[slug] = {"label": slug, "family": "control", "model": settings}
    variants.write_text(json.dumps(entries))
    monkeypatch.setattr(config_module, "VARIANTS_FILE", variants)
    monkeypatch.setattr(config_module, "SCALES_DIR", tmp_path / "scales")
    monkeypatch.setattr(config_module, "ROOT", tmp_path)
    shutil.copytree(ROOT / "config/scales", tmp_path / "scales")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def model(slug):
    return LanguageModel(load_scale("smoke").model("small", slug), seed=0)


def test_a_rule_from_outside_is_what_the_sublayers_use(outside):
    louder, baseline = model("louder"), model("baseline")
    assert {type(rule).__name__ for rule in louder.rules()} == {"Louder"}
    assert louder.state_dict().keys() == baseline.state_dict().keys()
    X, h = torch.ones(3), torch.full((3,), 2.0)
    assert torch.equal(louder.rules()[0](X, X, X, h), torch.full((3,), 5.0))
    assert not torch.equal(louder(TOKENS), baseline(TOKENS))


def test_a_reader_from_outside_is_what_the_sublayers_use(outside):
    quiet = model("quiet")
    assert type(quiet.blocks[0].mlp_reader).__name__ == "Quiet"
    assert torch.equal(quiet(TOKENS), model("baseline")(TOKENS))


def test_its_file_counts_for_the_identity_of_its_own_runs_only(outside, tmp_path):
    scale = load_scale("smoke")
    before = {slug: scale.fingerprint("small", slug) for slug in ("louder", "quiet", "baseline")}
    file = tmp_path / f"{outside}.py"
    file.write_text(f"# a comment\n{RULE}")
    from ddl import code_identity

    code_identity._read.cache_clear()
    assert {slug: scale.fingerprint("small", slug) for slug in before} == before
    file.write_text(RULE.replace("2 * h", "3 * h"))
    code_identity._read.cache_clear()
    after = {slug: scale.fingerprint("small", slug) for slug in before}
    assert {slug for slug in before if after[slug] != before[slug]} == {"louder", "quiet"}


def test_a_trained_model_loads_while_a_design_names_its_rule_and_not_without(outside, tmp_path):
    louder = model("louder")
    save_model(louder, tmp_path / "run")
    assert torch.equal(load_model(tmp_path / "run")(TOKENS), louder(TOKENS))
    entries = json.loads(config_module.VARIANTS_FILE.read_text())
    del entries["louder"]
    config_module.VARIANTS_FILE.write_text(json.dumps(entries))
    with pytest.raises(
        ModelFileError, match=r"config\.json: residual: .* loaded only if an entry of config/variants.yaml names it"
    ):
        load_model(tmp_path / "run")


def test_a_run_of_a_stranger_cannot_name_code(outside, tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('code of a stranger ran')")
    config = dataclasses.replace(load_scale("smoke").model("small", "baseline"), residual="evil:Rule")
    with pytest.raises(ConfigError, match="residual: 'evil:Rule' is a class outside the package"):
        LanguageModel(config)


@pytest.mark.parametrize(
    ("slug", "message"),
    [
        ("number", r"residual: .*:number': expected a subclass of ddl\.model\.residual\.Rule, found 3"),
        ("absent", r"residual: .*:Absent': expected a subclass of ddl\.model\.residual\.Rule, found None"),
        ("nowhere", r"residual: .*PYTHONPATH, found no Python module 'no_such_package\.rules'"),
        ("compiled", r"residual: .*PYTHONPATH, found no Python module 'itertools'"),
    ],
)
def test_what_cannot_be_loaded_is_a_sentence(outside, slug, message):
    with pytest.raises(ConfigError, match=message):
        model(slug)
