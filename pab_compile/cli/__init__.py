"""The command line ``pab``: one module per command, and what they share."""
