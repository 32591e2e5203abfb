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
