"""What each unit loses under each scheme, and ways to estimate it."""
