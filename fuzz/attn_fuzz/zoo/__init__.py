"""Real bugs, reintroduced one at a time: small patches as data, applied to a module's source in memory."""
