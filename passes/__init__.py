"""Compiler passes over captured graphs: torch, sympy and networkx only."""
