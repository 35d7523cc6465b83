"""A convex solver, where there is one: the only product file that knows cvxpy."""

from __future__ import annotations

import warnings
from typing import Any

from server.power.schedule import (
    InfeasiblePlanError,
)


def solve(statement: Any, solver: str = "CLARABEL") -> None:
    """Solve a stated problem to its optimum.

    Raises:
        InfeasiblePlanError: any other end.
    """
    cp = library()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the status says it, and is looked at
            statement.solve(solver=solver)
    except cp.SolverError as error:
        raise InfeasiblePlanError(f"convex plan: the solver failed: {error}") from error
    if statement.status != cp.OPTIMAL:
        raise InfeasiblePlanError(
            f"convex plan: the solver ended with {statement.status!r}, wanted 'optimal'. Loosen "
            "the limits, or take fewer rounds."
        )


def library() -> Any:
    """cvxpy.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        import cvxpy
    except ImportError as error:
        raise InfeasiblePlanError(
            f"convex plan: {error}. Install the solver with: pip install 'pairzero[plan]'"
        ) from error
    return cvxpy
