"""The graph: its nodes, how it is captured, printed, compared and cut."""
