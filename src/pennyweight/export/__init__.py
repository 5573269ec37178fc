"""Files that other tools load."""
