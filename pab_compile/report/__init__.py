"""Reports: what was found in a graph, as text, pictures and files."""
