"""Plans: which site computes at which step."""
