"""The verbs: what they need brought together, carried out, exported and proven."""
