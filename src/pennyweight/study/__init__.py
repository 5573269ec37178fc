"""Many measurements towards one answer: sensitivities, plans under a budget, scaling laws."""
