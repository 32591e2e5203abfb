"""What the delta rule does in trained models, over seeds (study `inside`): does it overwrite, and is that used?"""

from dataclasses import dataclass

from ddl.config import load_scale
from ddl.reporting.judged_claims import FAIR, SCALE
from ddl.reporting.mechanism_results import COUNTERPARTS, overwrites, retrained, study_rows
from ddl.reporting.read_studies import StudyRowsError, read_inside
from ddl.reporting.seed_statistics import Estimate, over_seeds

STUDY, DESIGN, CHANGE = "inside", "ddl-cc", "erase off"
MEASURES = ["erase_share", "energy_before", "energy_after"]


@dataclass(frozen=True)
class InsideModels:
    """What DDL-CC does with the repaired backbone; one value per sublayer, each the mean over tokens and models.

    Attributes:
        size: of the models.
        models: their number; each has another seed.
        overwriting: sublayer that overwrites -> number of models in which it does.
        erase_share: length of the erase term relative to the sum of both terms' lengths.
        energy_before, energy_after: energy of the state along k relative to chance, 1/d.
        relies: rise of the loss if the erase term is switched off in the trained models, nats.
        useful: loss of the models trained without it minus that of those with it, nats; None without such runs.
    """

    size: str
    models: int
    overwriting: dict[int, int]
    erase_share: list[float]
    energy_before: list[float]
    energy_after: list[float]
    relies: Estimate
    useful: Estimate | None


def inside_models(size: str) -> InsideModels | None:
    """What the committed rows say about the models of one size; None if there are none."""
    try:
        found = read_inside(STUDY)
    except StudyRowsError:
        return None
    found = found[(found["size"] == size) & (found["backbone"] == FAIR) & (found["variant"] == DESIGN)]
    changed = found[(found["name"] == CHANGE) & (found["place"] == "all")]
    if found.empty or changed.empty:
        return None
    layers = found[(found["kind"] == "sublayer") & found["name"].isin(MEASURES)].astype({"place": int})
    each = layers.pivot(index=["seed", "place"], columns="name", values="value")[MEASURES]
    each[["energy_before", "energy_after"]] *= load_scale(SCALE).model(size, DESIGN).width
    hits = overwrites(*(each[name] for name in MEASURES)).groupby("place").sum()
    means = each.groupby("place").mean()
    rows = study_rows()
    same = rows[(rows["scale"] == SCALE) & (rows["backbone"] == FAIR)]
    return InsideModels(
        size,
        changed["seed"].nunique(),
        {place: count for place, count in hits.to_dict().items() if count},
        means["erase_share"].tolist(),
        means["energy_before"].tolist(),
        means["energy_after"].tolist(),
        over_seeds(list(changed["value"])),
        retrained(same, size, DESIGN, COUNTERPARTS[CHANGE, DESIGN]).estimate,
    )
