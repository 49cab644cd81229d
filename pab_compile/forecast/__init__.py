"""Forecast: what ranks would exchange, and how long it takes, for a program with its sites."""
