"""``python -m pab_compile.cli`` is ``pab``."""

from __future__ import annotations

import sys

from .main import main

sys.exit(main())
