"""All mutations: by what they break, in files of their own."""

from __future__ import annotations

from .compiling import COMPILING
from .costs import SLOWER
from .graphs import GRAPHS
from .memory import MEMORY
from .open_sizes import OPEN_SIZES
from .plans import PLANS
from .ranks import RANKS
from .rewrites import REWRITES
from .running import RUNNING
from .sites import SITES

MUTATIONS = (
    *GRAPHS,
    *SITES,
    *REWRITES,
    *PLANS,
    *RUNNING,
    *COMPILING,
    *MEMORY,
    *OPEN_SIZES,
    *RANKS,
    *SLOWER,
)
