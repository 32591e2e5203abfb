"""The profiles: the Slurm profile repeats the default settings that it replaces, and names rules that exist."""

import re

import pytest
import yaml

from ddl.layout import ROOT


@pytest.fixture(scope="module")
def profiles() -> dict[str, dict]:
    return {name: yaml.safe_load((ROOT / f"profiles/{name}/config.yaml").read_text()) for name in ("default", "slurm")}


def test_slurm_keeps_the_default_settings_but_for_the_limit_of_one_machine(profiles):
    default = dict(profiles["default"])
    assert default.pop("resources") == ["gpu=1"]
    assert default.items() <= profiles["slurm"].items()
    assert "resources" not in profiles["slurm"]


def test_slurm_names_rules_that_exist_and_all_that_take_the_cores_of_one_machine(profiles):
    text = (ROOT / "Snakefile").read_text()
    slurm = profiles["slurm"]
    rules = dict(re.findall(r"^(?:use rule \w+ as|rule) (\w+).*?:\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(slurm["set-threads"]) | set(slurm["set-resources"]) <= set(rules)
    takes_gpus = {name for name, body in rules.items() if 'gpu=recipe("gpus")' in body}
    assert len(takes_gpus) > 4
    assert takes_gpus <= set(slurm["set-resources"])  # the default is for rules without a model
    takes_cores = {name for name, body in rules.items() if re.search(r"threads: (all_cores|threads_of_data)\n", body)}
    assert set(slurm["set-threads"]) == takes_cores
