"""What becomes of optimizer state beside a parameter that a cut replaces."""

from __future__ import annotations

from enum import Enum


class StatePolicy(Enum):
    """How the optimizer state of replaced parameters is carried over."""

    TRANSPORT = "transport"  # moments follow the parameter's map through the cut; reset where there is no map
    RESET = "reset"  # moments and step start anew
    SLICE = "slice"  # the leading entries are kept, step too: pairs moments with unrelated states in a new basis
