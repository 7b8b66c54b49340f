"""Which trial comes next, and with which point."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from typing import Any

from pipeline.tune.space import Point, Space, spelling

LEAST_RESULTS = 8  # below, importances say nothing


def suggest_point(
    space: Space,
    seed: int,
    index: int,
    tried: Sequence[tuple[Point, float | None]],
    *,
    maximise: bool,
) -> Point:
    """Suggest a point by Optuna's tree-structured Parzen estimator.

    A pure function: the sampler's generator is keyed by `seed` and `index`, and all that the
    sampler learns is passed in.

    Args:
        tried: points of other trials with their values; None where a trial has no value yet,
            or failed. The sampler keeps away from such points.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    digest = hashlib.sha256(f"era/tune/tpe/{seed}/{index}".encode()).digest()
    sampler = optuna.samplers.TPESampler(
        seed=int.from_bytes(digest[:4], "little"), constant_liar=True
    )
    study = _study(space, tried, maximise, sampler)
    forms = {key: _distribution(domain) for key, domain in space.items()}
    params = study.ask(fixed_distributions=forms).params
    return {key: _from_optuna(space[key], params[key]) for key in space}


def importance(
    space: Space, results: Sequence[tuple[Point, float]], maximise: bool
) -> dict[str, float]:
    """How much each key matters for the result, by Optuna's PED-ANOVA; most important first.

    Returns:
        Shares that sum to 1; empty for a single key, or fewer than `LEAST_RESULTS` results.
    """
    if len(space) < 2 or len(results) < LEAST_RESULTS:
        return {}
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the evaluator is marked experimental
        evaluator = PedAnovaImportanceEvaluator()
        found = get_param_importances(_study(space, results, maximise), evaluator=evaluator)
    return {key: float(value) for key, value in found.items()}


def _study(
    space: Space,
    tried: Sequence[tuple[Point, float | None]],
    maximise: bool,
    sampler: Any = None,
) -> Any:
    """An Optuna study in memory of these points."""
    import optuna
    from optuna.trial import TrialState, create_trial

    study = optuna.create_study(sampler=sampler, direction="maximize" if maximise else "minimize")
    forms = {key: _distribution(domain) for key, domain in space.items()}
    for point, value in tried:
        known = value is not None and math.isfinite(value)
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if known else TrialState.RUNNING,
                value=value if known else None,
                params={key: _to_optuna(space[key], point[key]) for key in space},
                distributions=forms,
            )
        )
    return study


def _distribution(domain: dict[str, list[Any]]) -> Any:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    ((kind, values),) = domain.items()
    if kind == "choice":  # by position: Optuna takes scalars only
        return CategoricalDistribution(list(range(len(values))))
    if kind == "int":
        return IntDistribution(values[0], values[1])
    return FloatDistribution(values[0], values[1], log=kind == "loguniform")


def _to_optuna(domain: dict[str, list[Any]], value: Any) -> Any:
    values = domain.get("choice")
    return value if values is None else [spelling(v) for v in values].index(spelling(value))


def _from_optuna(domain: dict[str, list[Any]], value: Any) -> Any:
    values = domain.get("choice")
    return value if values is None else values[value]
