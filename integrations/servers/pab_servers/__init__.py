"""``pab_compile`` in servers: each module knows one server, ``configuration`` what users write."""
