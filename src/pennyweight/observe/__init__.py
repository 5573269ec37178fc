"""What the inputs of linears look like, gathered in one pass and additive over data."""
