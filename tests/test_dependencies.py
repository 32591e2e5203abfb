"""What the package installs."""

import re
import tomllib

from ddl.layout import ROOT


def test_every_direct_dependency_is_pinned_and_says_why_it_is_there():
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    pinned = set(re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    for requirement in (each for group in groups for each in group):
        reason = re.search(rf'"{re.escape(requirement)}"[\],]*  # (.+)', text)
        assert reason, f"{requirement}: no reason"
        name = re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")
        assert name == "ddl" or name in {each.lower().replace("_", "-") for each in pinned}, name


def test_every_pinned_package_of_the_set_up_has_a_hash_unless_a_machine_may_have_its_own_build():
    def pins(name):
        return set(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", (ROOT / name).read_text(), re.MULTILINE))

    locked, hashed = pins("requirements.lock"), pins("requirements.hashes")
    assert hashed <= locked
    own_build = r"torch|triton|nvidia-.*|cuda-.*"
    slurm = r"snakemake-executor-plugin-.*"  # of an extra that the set-up leaves out
    assert not [name for name, _ in locked - hashed if not re.fullmatch(f"{own_build}|{slurm}", name)]
    text = (ROOT / "requirements.hashes").read_text()
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(hashed) > 100
    assert all("--hash=sha256:" in entry for entry in entries)
