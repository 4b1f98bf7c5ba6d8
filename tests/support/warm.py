"""What the server of `processes` does before its forks: it gets to know the toy.

Forks find config files read and parsed, as the second study of a process does.
"""

from __future__ import annotations

import gc

from repro.launching.local import check_launchers
from repro.planning.plan import plan_study
from repro.records.papers import load_papers

# With n_jobs=auto this would look for a GPU, which no fork could use any more.
check_launchers(plan_study(["paper=toy", "scale=smoke", "n_jobs=1"]))
load_papers()
gc.collect()
gc.freeze()  # which the garbage collector of every fork would go through
