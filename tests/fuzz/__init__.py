"""Random generations of one compiled model, each checked against an oracle that is told all."""
