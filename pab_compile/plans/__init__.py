"""Plans: who computes when."""
