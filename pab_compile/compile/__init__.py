"""Compilation: from one Dynamo graph to a program that runs."""
