"""DGQ's two-phase search in plain loops over rows and candidates (arXiv:2310.04836)."""

import torch

from pennyweight.formats.dual_grained import store_row_scale


def two_phase(weight, gram, format, *, group_ratios, row_ratios):
    """(codes, k, z, s) of a weight [out, in]: every candidate of every row and group, in turn."""
    results = [
        _row(row.double(), gram.double(), format, group_ratios, row_ratios) for row in weight
    ]
    return [torch.stack(parts) for parts in zip(*results, strict=True)]


def _row(w, gram, format, group_ratios, row_ratios):
    size = format.group_size
    scales, zeros = [], []
    for start in range(0, len(w), size):
        group, block = w[start : start + size], gram[start : start + size, start : start + size]
        scale, zero = _group(group, block, group_ratios)
        scales.append(scale)
        zeros.append(zero)
    best = None
    for ratio in row_ratios:
        absmax = (ratio * w.abs().max() / 127).float().view(1, 1)
        s = store_row_scale(absmax, format).double()[0, 0]
        codes, k = _codes(w, scales, zeros, s, size)
        steps = (codes - torch.stack(zeros).repeat_interleave(size)) * k.repeat_interleave(size)
        error = s * steps - w
        loss = error @ gram @ error
        if best is None or loss < best[0]:
            best = (loss, codes, k, torch.stack(zeros), s)
    return best[1:]


def _group(w, gram, ratios):
    low, high = w.min().clamp(max=0), w.max().clamp(min=0)
    best = None
    for ratio in ratios:
        scale = ratio * (high - low) / 15
        zero = (-ratio * low / scale).round()
        error = scale * ((w / scale).round() + zero).clamp(0, 15) - scale * zero - w
        loss = error @ gram @ error
        if best is None or loss < best[0]:
            best = (loss, scale, zero)
    return best[1:]


def _codes(w, scales, zeros, s, size):
    codes, ks = [], []
    for index, (scale, zero) in enumerate(zip(scales, zeros, strict=True)):
        k = (scale / s).round().clamp(min=1)
        reach = (127 / k).floor()
        group = w[index * size : (index + 1) * size].clamp(-127 * s, 127 * s)
        lowest, highest = (zero - reach).clamp(min=0), (zero + reach).clamp(max=15)
        codes.append(((group / (k * s)).round() + zero).clamp(lowest, highest))
        ks.append(k)
    return torch.cat(codes), torch.stack(ks)
