"""Sequence parallelism: the graph of one rank, made from the graph of one device.

``find`` (where an axis lies: ``placement``; what an op does to it: ``rules``), ``decide``
(``layout``, ``choose``), ``apply`` (``localise``, ``emit``), ``check``.
"""
