"""Corrections of low rank as their papers state them, in float64: a singular value decomposition
of the error, scaled from the right by a root of what the inputs measure."""

import torch


def lorc(error, rank):
    """ZeroQuant-V2, section 5."""
    return scaled_svd(error, torch.eye(error.shape[1], dtype=torch.float64), rank)


def lqer(error, mean_abs, rank):
    """LQER, eq. 9: S = diag(mean |x_j|)."""
    return scaled_svd(error, torch.diag(mean_abs.double()), rank)


def qera_exact(error, second_moment, rank):
    """QERA, theorem 1: S = (E[x x^T])^(1/2)."""
    values, vectors = torch.linalg.eigh(second_moment.double())
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    return scaled_svd(error, root, rank)


def scaled_svd(error, root, rank):
    """The matrix of that rank nearest to `error` when both are multiplied by `root`."""
    left, sizes, right = torch.linalg.svd(error.double() @ root, full_matrices=False)
    return left[:, :rank] @ torch.diag(sizes[:rank]) @ right[:rank] @ torch.linalg.inv(root)
