"""How often a run writes how far it is: seldom enough to cost nothing, on a slow disk too."""

from __future__ import annotations

SHARE = 0.01  # of the time
LONGEST = 30.0  # seconds: whoever looks wants to see something


def pause_after(seconds: float, least: float) -> float:
    """How many seconds pass before what took so many is done again, which are the least.

    Examples:
        >>> pause_after(0.002, least=1.0), pause_after(0.02, least=1.0), pause_after(5.0, least=1.0)
        (1.0, 2.0, 30.0)
    """
    return min(max(least, seconds / SHARE), LONGEST)
