"""Traffic: what ranks exchange, predicted from the graph."""
