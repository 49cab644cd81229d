"""Compilation: from one Dynamo graph to something that runs."""
