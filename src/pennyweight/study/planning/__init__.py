"""The cheapest plan inside a budget: searched, built and measured."""
