"""How the gain of a design changes with the number of training tokens, and what that predicts for more of them.

Each rung of the ladder is a number of tokens with a complete schedule of its own. Four models describe the losses L of
all designs r at D tokens:

    common: L = E + B_r D^-b           the gap is a power of D, and a constant factor of tokens
    own-limits: L = E_r + B_r D^-b     the gap keeps a constant part
    own: L = E_r + B_r D^-b_r
    gap: log(gap) = a - c log(D)       no limit is needed

A model is worth as much as its prediction of the highest rung from the others. All settings of the fits were fixed
before the runs.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd
from scipy import optimize, stats

from ddl.layout import BASELINE
from ddl.reporting.read_studies import losses as by_seed
from ddl.reporting.seed_statistics import LEVEL, Blocks, Estimate, Losses

MODELS = ("common", "own-limits", "own", "gap")
HUBER = 1e-3  # residuals of log(L) up to this count squared
LIMITS = (0.0, 3.0)  # of E, in nats
EXPONENTS = (0.02, 3.0)
SIZES = (-5.0, 5.0)  # of log(L - E) at the first rung
STARTS = tuple(itertools.product((0.0, 1.0, 2.0, 2.9), (0.1, 0.3, 0.6, 1.0)))  # of (E, b)
DRAWS = 200  # of the rungs' means, for the intervals of predictions
APPLIES = 0.95  # the least share of draws that the model `gap` must apply to
SEED = 0
# The slope dL/d(log D) of the scaling law of Hoffmann et al. (2022, approach 3) is -0.28 * 410.7 D^-0.28. It turns a
# published gain into a factor of tokens.
DATA_TERM, DATA_EXPONENT = 410.7, 0.28


@dataclass(frozen=True)
class Ladder:
    """Losses of designs with one backbone, for increasing numbers of tokens."""

    tokens: tuple[int, ...]
    losses: Mapping[str, tuple[Losses, ...]]  # design -> for each rung, seed -> loss

    @classmethod
    def of(cls, rows: pd.DataFrame, backbone: str, size: str) -> "Ladder":
        """The rungs that have runs of every design of the rows with this backbone and size."""
        own = rows[(rows["backbone"] == backbone) & (rows["size"] == size)].dropna(subset=["val_loss"])
        found = {key: by_seed(group) for key, group in own.groupby(["variant", "tokens"], sort=False)}
        designs = list(dict.fromkeys(own["variant"]))
        rungs = [rung for rung in sorted(set(own["tokens"])) if all((slug, rung) in found for slug in designs)]
        return cls(tuple(map(int, rungs)), {slug: tuple(found[slug, rung] for rung in rungs) for slug in designs})

    def __hash__(self) -> int:
        return hash((self.tokens, tuple(self.losses)))

    def below(self, rungs: int) -> "Ladder":
        """The first rungs only."""
        return Ladder(self.tokens[:rungs], {slug: losses[:rungs] for slug, losses in self.losses.items()})

    @cached_property
    def means(self) -> np.ndarray:
        """[designs, rungs], in the order of `losses`."""
        return np.array([[np.mean(list(rung.values())) for rung in losses] for losses in self.losses.values()])

    @cached_property
    def noise(self) -> tuple[float, float, int]:
        """Standard deviations over seeds, pooled over the rungs, and the degrees of freedom of the first.

        The first is that of one run around the mean of its design and of its seed; the second is that of the effect of
        a seed, which all designs share.
        """
        fits = [Blocks.if_enough({slug: losses[rung] for slug, losses in self.losses.items()}) for rung in self.rungs]
        known = [fit for fit in fits if fit]
        freedom = sum(fit.degrees_of_freedom for fit in known)
        if not freedom:
            return math.nan, math.nan, 0
        own = sum(fit.noise**2 * fit.degrees_of_freedom for fit in known) / freedom
        seeds = [np.var([np.mean(runs) for runs in zip(*losses, strict=True)], ddof=1) for losses in self.common]
        shared = max(float(np.mean(seeds)) - own / len(self.losses), 0.0) if seeds else 0.0
        return math.sqrt(own), math.sqrt(shared), freedom

    @property
    def rungs(self) -> range:
        return range(len(self.tokens))

    @property
    def common(self) -> list[list[list[float]]]:
        """For each rung with two seeds that all designs have: design, seed -> loss."""
        found = []
        for rung in self.rungs:
            seeds = sorted(set.intersection(*(set(losses[rung]) for losses in self.losses.values())))
            if len(seeds) > 1:
                found.append([[losses[rung][seed] for seed in seeds] for losses in self.losses.values()])
        return found

    def gap(self, design: str, rung: int, base: str = BASELINE) -> Estimate | None:
        """Loss of the baseline, or of the design `base`, minus that of a design; None without a common seed.

        The interval uses the standard deviation of this difference over all rungs.
        """
        differences = [
            [other[seed] - own[seed] for seed in sorted(other.keys() & own.keys())]
            for other, own in zip(self.losses[base], self.losses[design], strict=True)
        ]
        if not differences[rung]:
            return None
        freedom = sum(len(rung) - 1 for rung in differences if rung)
        squares = sum(float(((np.array(rung) - np.mean(rung)) ** 2).sum()) for rung in differences if rung)
        mean, n = float(np.mean(differences[rung])), len(differences[rung])
        if not freedom:
            return Estimate(mean, -math.inf, math.inf, math.nan, n)
        sd = math.sqrt(squares / freedom)
        half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * sd / math.sqrt(n)
        return Estimate(mean, mean - half, mean + half, sd, n)

    def worth(self, gain: Estimate, tokens: int) -> Estimate | None:
        """The log of the factor of tokens with which the baseline would gain as much.

        The baseline's mean loss is interpolated linearly in the logarithm of the tokens, and continued beyond the
        rungs. The standard deviation is not carried over. None if `tokens` is not within the rungs.

        Args:
            gain: in nats, at `tokens`.
        """
        if len(self.tokens) < 2 or not self.tokens[0] <= tokens <= self.tokens[-1]:
            return None
        logs = np.log(self.tokens)
        losses = self.means[list(self.losses).index(BASELINE)]
        here = float(np.interp(math.log(tokens), logs, losses))
        mean, low, high = (
            log_tokens_for(here - value, logs, losses) - math.log(tokens) for value in (gain.mean, gain.low, gain.high)
        )
        return Estimate(mean, low, high, math.nan, gain.n)

    def drawn(self, rng: np.random.Generator) -> np.ndarray:
        """Means of the rungs as other seeds might give them, [designs, rungs]."""
        own, shared, freedom = self.noise
        runs = np.array([[len(rung) for rung in losses] for losses in self.losses.values()])
        common = shared * rng.standard_normal(runs.shape[1]) / np.sqrt(runs.max(axis=0))
        return np.asarray(self.means + common + own * rng.standard_t(freedom, runs.shape) / np.sqrt(runs))


def log_tokens_for(loss: float, logs: np.ndarray, losses: np.ndarray) -> float:
    """Where a piecewise linear curve of falling losses over log tokens reaches a loss; its ends are continued."""
    if not math.isfinite(loss):
        return math.copysign(math.inf, -loss)
    segment = int(np.clip(np.searchsorted(-losses, -loss) - 1, 0, len(losses) - 2))
    slope = (losses[segment + 1] - losses[segment]) / (logs[segment + 1] - logs[segment])
    return float(logs[segment] + (loss - losses[segment]) / slope)


def published_worth(gain: float, tokens: float) -> float:
    """Log of the factor of tokens that a published gain in nats is worth, by the slope of a published scaling law."""
    return gain / (DATA_EXPONENT * DATA_TERM * tokens**-DATA_EXPONENT)


@dataclass(frozen=True)
class Prediction:
    """A predicted gap in nats, with the ends of its interval over seeds, and over models if these are pooled."""

    gap: float
    low: float
    high: float


@lru_cache(maxsize=8)  # thousands of fits
def predictions(ladder: Ladder, tokens: float) -> dict[str, dict[str, Prediction]]:
    """Design -> model -> the gap to the baseline that the rungs predict at another number of tokens; `all` pools them.

    The means of the rungs are drawn anew and fitted again for the interval. The model `gap` is left out for a design
    whose gap is not above zero at every rung, in the measured means and in nearly all draws.
    """
    logs = np.log(np.array(ladder.tokens) / ladder.tokens[0])
    target, designs = math.log(tokens / ladder.tokens[0]), list(ladder.losses)
    baseline, rng = designs.index(BASELINE), np.random.default_rng(SEED)
    draws = [ladder.drawn(rng) for _ in range(DRAWS)]
    gaps = {}  # model -> [1 + draws, designs]; the first row is that of the measured means
    for model in MODELS[:-1]:
        best = fitted(model, logs, ladder.means)
        fits = [best, *(fitted(model, logs, means, [best]) for means in draws)]
        ends = np.array([curves(model, fit, len(designs), np.array([target]))[:, 0] for fit in fits])
        gaps[model] = ends[:, [baseline]] - ends
    lines = [power_of_gap(logs, means[[baseline]] - means) for means in (ladder.means, *draws)]
    gaps["gap"] = np.array([np.exp(a - c * target) for a, c in lines])
    found: dict[str, dict[str, Prediction]] = {}
    for place, slug in enumerate(designs):
        if slug == BASELINE:
            continue
        models = {model: values[:, place] for model, values in gaps.items() if applies(values[:, place])}
        pooled = np.concatenate(
            [[np.mean([values[0] for values in models.values()])], *(v[1:] for v in models.values())]
        )
        found[slug] = {model: prediction(values) for model, values in (models | {"all": pooled}).items()}
    return found


def applies(values: np.ndarray) -> bool:
    """Whether a model describes the measured means and nearly all draws."""
    return bool(np.isfinite(values[0]) and np.isfinite(values).mean() >= APPLIES)


def prediction(values: np.ndarray) -> Prediction:
    """The first value, with the interval of the others; draws in which a model does not apply are left out."""
    low, high = np.nanquantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Prediction(float(values[0]), float(low), float(high))


def decay_of_gap(ladder: Ladder, design: str) -> Prediction | None:
    """The exponent c of gap = a D^-c with its interval; None if the gap is not surely above zero at every rung."""
    logs, rng = np.log(np.array(ladder.tokens) / ladder.tokens[0]), np.random.default_rng(SEED)
    place, baseline = list(ladder.losses).index(design), list(ladder.losses).index(BASELINE)
    draws = (ladder.means, *(ladder.drawn(rng) for _ in range(DRAWS)))
    values = np.array([power_of_gap(logs, means[[baseline]] - means)[1][place] for means in draws])
    return prediction(values) if applies(values) else None


def power_of_gap(log_tokens: np.ndarray, gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a, c) of log(gap) = a - c log(D) for each design by least squares; NaN where a gap is not above zero."""
    logs = np.log(np.where((gaps > 0).all(axis=1, keepdims=True), gaps, np.nan))
    centred = log_tokens - log_tokens.mean()
    c = -(logs @ centred) / (centred @ centred)
    return np.asarray(logs.mean(axis=1) + c * log_tokens.mean()), np.asarray(c)


def places(model: str, designs: int) -> np.ndarray:
    """Where the parameters of one of the first three models hold E, b and log(L - E) of each design, [3, designs]."""
    own = np.arange(designs)
    limits, exponents = (own if model != "common" else 0 * own), (own if model == "own" else 0 * own)
    exponents = exponents + limits[-1] + 1
    return np.stack([limits, exponents, exponents[-1] + 1 + own])


def curves(model: str, parameters: np.ndarray, designs: int, log_tokens: np.ndarray) -> np.ndarray:
    """The losses [designs, rungs] of one of the first three models; `log_tokens` are relative to the first rung."""
    limits, exponents, sizes = parameters[places(model, designs)][:, :, None]
    return np.asarray(limits + np.exp(sizes - exponents * log_tokens))


def fitted(model: str, log_tokens: np.ndarray, losses: np.ndarray, starts: Sequence[np.ndarray] = ()) -> np.ndarray:
    """The parameters of one of the first three models with the lowest Huber loss of log(L).

    Args:
        log_tokens: of the rungs, relative to the first one.
        losses: [designs, rungs], in nats.
        starts: parameters to start from; none takes `STARTS`.
    """
    designs, at = len(losses), places(model, len(losses))
    counts = [len(set(row)) for row in at]
    low, high = (np.repeat(ends, counts) for ends in zip(LIMITS, EXPONENTS, SIZES, strict=True))
    if not len(starts):
        starts = [np.concatenate([np.repeat(pair, counts[:2]), np.log(losses[:, 0] - pair[0])]) for pair in STARTS]

    def residuals(parameters: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(curves(model, parameters, designs, log_tokens) / losses).ravel())

    def jacobian(parameters: np.ndarray) -> np.ndarray:
        found = curves(model, parameters, designs, log_tokens)
        decay = found - parameters[at[0]][:, None]
        slopes = np.zeros((*losses.shape, sum(counts)))
        for design in range(designs):
            slopes[design, :, at[0, design]] = 1 / found[design]
            slopes[design, :, at[1, design]] = -log_tokens * decay[design] / found[design]
            slopes[design, :, at[2, design]] = decay[design] / found[design]
        return slopes.reshape(losses.size, -1)

    settings = {"jac": jacobian, "bounds": (low, high), "loss": "huber", "f_scale": HUBER}
    found = [optimize.least_squares(residuals, np.clip(start, low, high), **settings) for start in starts]
    return np.asarray(min(found, key=lambda fit: fit.cost).x)
