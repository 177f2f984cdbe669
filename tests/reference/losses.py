"""The losses as loops over single samples in Python floats, written from the equations."""

import math


def cross_entropy(z, y):
    return -z[y] + math.log(math.fsum(math.exp(v) for v in z))


def focal_softmax(z, y, gamma):
    p = math.exp(z[y]) / math.fsum(math.exp(v) for v in z)
    return (1 - p) ** gamma * -math.log(p)


def focal_sigmoid(z, y, gamma):
    total = 0.0
    for i, v in enumerate(z):
        p = 1 / (1 + math.exp(-v if i == y else v))
        total += (1 - p) ** gamma * -math.log(p)
    return total


def ldam_margin(counts, y, largest=0.5, power=0.25):
    constant = largest * min(n for n in counts if n > 0) ** power
    return constant / counts[y] ** power


def shifted(z, y, margin, scale):
    return cross_entropy([scale * (v - margin * (j == y)) for j, v in enumerate(z)], y)


def maximum_margin(z, y, delta_neg, beta):
    gap = z[y] - max(v for j, v in enumerate(z) if j != y)
    if gap >= 0:
        return math.exp(-gap - beta * delta_neg)
    return math.exp(gap - delta_neg)


def crammer_singer(z, y, margin, scale):
    rival = max(v for j, v in enumerate(z) if j != y)
    return scale * max(rival - z[y] + margin, 0.0)


def weston_watkins(z, y, margin, scale):
    return scale * math.fsum(max(v - z[y] + margin, 0.0) for j, v in enumerate(z) if j != y)


def vector_scaling(z, y, counts, gamma, tau):
    total, most = sum(counts), max(counts)
    moved = [
        (n / most) ** gamma * v + tau * math.log(n / total) for v, n in zip(z, counts, strict=True)
    ]
    return cross_entropy(moved, y)


def influence_balanced(z, y, h, factor, epsilon):
    total = math.fsum(math.exp(v) for v in z)
    distance = math.fsum(abs(math.exp(v) / total - (j == y)) for j, v in enumerate(z))
    influence = distance * math.fsum(abs(v) for v in h)
    return factor * cross_entropy(z, y) / (influence + epsilon)


def large_margin_softmax(x, w, y, m, blend):
    z = [math.fsum(a * b for a, b in zip(x, row, strict=True)) for row in w]
    length = math.hypot(*x) * math.hypot(*w[y])
    angle = math.acos(max(-1.0, min(1.0, z[y] / length)))
    k = min(int(m * angle / math.pi), m - 1)
    psi = (-1) ** k * math.cos(m * angle) - 2 * k
    z[y] = length * (blend * math.cos(angle) + psi) / (1 + blend)
    return cross_entropy(z, y)


def weighted_mean(losses, weights):
    total = math.fsum(weights)
    return math.fsum(w * v for w, v in zip(weights, losses, strict=True)) / total if total else 0.0
