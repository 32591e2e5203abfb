"""What the delta rule does in trained models, from made-up rows."""

import pandas as pd
import pytest

from ddl.config import load_scale
from ddl.reporting import inside_models as module
from ddl.reporting.evidence import overwriting, overwriting_sublayers
from ddl.reporting.inside_models import inside_models
from ddl.reporting.judged_claims import FAIR, SCALE
from ddl.reporting.read_studies import StudyRowsError

WIDTH = load_scale(SCALE).model("small", "ddl-cc").width


@pytest.fixture
def measured(monkeypatch):
    """Two sublayers over three seeds, and two seeds of models with and without the erase term."""

    def write(share, before, after, with_it=4.10, without=4.08):
        rows = []
        for seed in range(3):
            run = {"size": "small", "backbone": FAIR, "variant": "ddl-cc", "seed": seed}
            rows.append(run | {"kind": "intervention", "name": "erase off", "place": "all", "value": 0.2 + seed / 100})
            for place in range(2):
                for name, values in (("erase_share", share), ("energy_before", before), ("energy_after", after)):
                    rows.append(run | {"kind": "sublayer", "name": name, "place": str(place), "value": values[place]})
        other = pd.DataFrame(rows).assign(backbone="paper", value=9.0)  # must not be mixed in
        monkeypatch.setattr(module, "read_inside", lambda study: pd.concat([pd.DataFrame(rows), other]))
        losses = [
            {"scale": SCALE, "backbone": FAIR, "size": "small", "variant": variant, "steps": 8, "learning_rate": 0.1}
            | {"seed": seed, "val_loss": loss + seed / 10}
            for variant, loss in (("ddl-cc", with_it), ("write-only-cc", without))
            for seed in range(2)
        ]
        monkeypatch.setattr(module, "study_rows", lambda: pd.DataFrame(losses))

    return write


def test_a_sublayer_that_writes_more_than_it_erases_does_not_overwrite(measured):
    measured([0.2, 0.3], [2 / WIDTH, 3 / WIDTH], [20 / WIDTH, 30 / WIDTH])
    found = inside_models("small")
    assert (found.models, found.overwriting) == (3, {})
    assert found.energy_before == pytest.approx([2, 3])
    assert found.relies.mean == pytest.approx(0.21)
    assert (found.useful.mean, found.useful.n) == (pytest.approx(-0.02), 2)
    said = overwriting(found)
    assert said.startswith("In 3 trained small models of DDL-CC, not one of the 2 sublayers overwrites: ")
    assert "the erase term is 20 % to 30 % of an update" in said
    assert "2.0 to 3.0 times the energy of chance before the update and 20 to 30 times after it" in said
    assert "the loss rises by 0.21" in said
    assert "nats (n = 2) below those with it" in said


def test_a_sublayer_that_clears_its_direction_overwrites(measured):
    measured([0.7, 0.3], [30 / WIDTH, 3 / WIDTH], [2 / WIDTH, 30 / WIDTH])
    found = inside_models("small")
    assert found.overwriting == {0: 3}
    assert overwriting_sublayers(found) == "1 of 2 sublayers overwrites (the attention of block 1, in 3 of 3 models)"


def test_without_rows_nothing_is_said(monkeypatch):
    def missing(study):
        raise StudyRowsError("not found")

    monkeypatch.setattr(module, "read_inside", missing)
    assert inside_models("small") is None
