"""Faults put into the library on purpose, each of which the tests must find."""
