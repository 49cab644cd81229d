"""Reports: what is said of a graph, as text, pictures and files."""
