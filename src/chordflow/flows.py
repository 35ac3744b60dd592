"""Flows: a velocity in output space and the filter that realises it. Named flows are pairs, nothing more."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from chordflow.filters import AbstractFilter, Damped, Interpolated, Transpose
from chordflow.velocities import AbstractVelocity, Along, Descent, Straight

Number = float | Float[Array, ""]


class Flow(eqx.Module):
    """θ' = Σᵢ φ(σᵢ) vᵢ uᵢᵀ(W^½u): the pair of a velocity u(t, x) and a spectral filter φ.

    Outputs move with W^½x' = S W^½u, S = Σᵢ σᵢφ(σᵢ) uᵢuᵢᵀ, the singular triplets being those of W^½D.

    Examples
    --------
    >>> import chordflow as cf
    >>> halfway = cf.Flow(cf.velocities.Descent(), cf.filters.Power(p=0.5))
    """

    velocity: AbstractVelocity
    filter: AbstractFilter

    def __check_init__(self):
        if not isinstance(self.velocity, AbstractVelocity) or not isinstance(self.filter, AbstractFilter):
            raise ValueError(
                "Flow: expected a velocity of cf.velocities and a filter of cf.filters, "
                f"got {type(self.velocity).__name__} and {type(self.filter).__name__}"
            )


def standard() -> Flow:
    """θ' = −∇_θC = −Dᵀg (2.3); outputs x' = −DDᵀg (2.17). Time is s."""
    return Flow(Descent(), Transpose())


def adapted(eps: Number = 1e-6, passes: int = 2) -> Flow:
    """θ' = −D⁺g, realised by the damped filter (2.26); outputs x' = −P g (2.27), −g at full rank (2.19). Time is s.

    Parameters
    ----------
    eps, passes
        ε and m of :class:`chordflow.filters.Damped`: λ = (ε σ_max)², bias (λ/(σ²+λ))^m.
    """
    return Flow(Descent(), Damped(eps, passes))


def interpolated(tau: Number, eps: Number = 1e-6, passes: int = 2) -> Flow:
    """θ' = −A_τ ∇_θC, A_τ = (1−τ) 1 + τ (DᵀD)⁺ (Theorem 2.3): standard at τ = 0, adapted at τ = 1. Time is s.

    All members have the same equilibria (2.30–2.41).
    """
    return Flow(Descent(), Interpolated(tau, eps, passes))


def straight(target: Any = None, *, eps: Number = 1e-6, passes: int = 2) -> Flow:
    """Outputs travel the chord x(t) = (1−t) x(0) + t · target at constant speed, t in [0, 1] (2.53).

    Parameters
    ----------
    target
        Outputs-like; None takes the closed-form equilibrium of the loss (labels, or log y + c 1).
    eps, passes
        As in :func:`adapted`.
    """
    return Flow(Straight(target), Damped(eps, passes))


def along(path: Callable[[Any], Any], *, gain: Number = 0.0, eps: Number = 1e-6, passes: int = 2) -> Flow:
    """Outputs travel a prescribed path x*(t), t in [0, 1]: u = ẋ*(t) + κ (x*(t) − x).

    Parameters
    ----------
    path
        Differentiable ``path(t) -> outputs-like``.
    gain
        κ ≥ 0: deviation decays like e^(−κt) where S = 1.
    eps, passes
        As in :func:`adapted`.
    """
    return Flow(Along(path, gain), Damped(eps, passes))
