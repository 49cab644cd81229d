"""What tests are made of: models, oracles, several processes, expected text."""
