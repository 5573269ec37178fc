"""How far each size of a family can go: the study, its laws and their predictions."""
