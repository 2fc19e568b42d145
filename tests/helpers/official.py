"""Update rules as their authors' functions compute them, written plainly in NumPy: explicit inverses, sums and loops.

Each takes C, the weight before all edits and batches of keys and residuals, and gives every batch's change. Nothing of
the library is called here.
"""

import numpy as np


def rome(C, _W, batches, **_):
    """One fact at a time: u = C⁻¹k over its length, and v with v (u·k) = r."""
    for K, R in batches:
        left = np.linalg.inv(C) @ K[:, 0]
        left /= np.linalg.norm(left)
        right = R[:, 0] / (K[:, 0] @ left)
        yield np.outer(right, left)


def nse(C, W, batches, ridge, share):
    cache = np.zeros_like(C)
    for K, R in batches:
        scores = np.zeros(len(C))
        for key in K.T:
            scores += np.abs(key)
        ranking = np.argsort(-scores)
        running, rows = 0.0, []
        for neuron in ranking:
            running += scores[neuron]
            if running > share * scores.sum():
                break
            rows.append(neuron)
        square = np.ix_(rows, rows)
        adjusted = np.linalg.inv(ridge * C[square] + cache[square] + K[rows] @ K[rows].T) @ K[rows]
        change = np.zeros_like(W)
        change[:, rows] += R @ adjusted.T
        cache += K @ K.T
        yield change


def encore(C, _W, batches, ridge, norm_ridge):
    cache = np.zeros_like(C)
    for K, R in batches:
        whole = ridge * C + norm_ridge * np.eye(len(C)) + cache
        yield R @ np.linalg.solve(whole + K @ K.T, K).T
        cache += K @ K.T


def projection(matrix, threshold):
    """P on the singular vectors whose singular values are below a threshold, the mean by default."""
    left, sizes, _ = np.linalg.svd(matrix)
    small = left[:, sizes < (sizes.mean() if threshold is None else threshold)]
    return small @ small.T


def alphaedit(C, _W, batches, threshold, l2, P=None):
    cache, P = np.zeros_like(C), projection(C, threshold) if P is None else P
    for K, R in batches:
        yield np.linalg.solve(P @ (K @ K.T + cache) + l2 * np.eye(len(C)), P @ K @ R.T).T
        cache += K @ K.T


def sphere(C, W, batches, threshold, l2, share, strength):
    for change in alphaedit(C, W, batches, threshold, l2):
        rows = W / (np.linalg.norm(W, axis=1, keepdims=True) + 1e-8)
        values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
        leading = np.cumsum(values[::-1]) / values.sum()
        U = vectors[:, -(int((leading <= share).sum()) + 1) :]
        projected = change @ (np.eye(len(C)) - strength * U @ U.T)
        W = W + projected
        yield projected


def betaedit(C, _W, batches, ridge, threshold, l2, renewal):
    cache, P, edits, last = np.zeros_like(C), projection(C, threshold), 0, 0
    for K, R in batches:
        if edits - last >= renewal:
            P, last = projection((cache / edits + ridge * C) / (ridge + 1), threshold), edits
        whole = P @ (K @ K.T + cache + ridge * C) + l2 * np.eye(len(C))
        yield np.linalg.solve(whole, P @ K @ R.T).T
        cache += K @ K.T
        edits += K.shape[1]


def lyaplock(C, W, batches, ridge, tolerance):
    """With V = 1 and b = 0; Z begins at √D and never falls below it, a is 1/√D, and D is set after the first batch."""
    VK, VV = W @ C, np.trace(W @ C @ W.T)

    def loss(weight):
        return np.trace(C @ weight.T @ weight) - 2 * np.trace(VK @ weight.T) + VV

    D = Z = None
    seen_vk, seen_kk = 0.0, 0.0
    for K, R in batches:
        pull = 1.0 if D is None else Z / np.sqrt(D)
        left = R @ K.T + pull * ridge * (VK - W @ C) + (seen_vk - W @ seen_kk if D is not None else 0.0)
        change = left @ np.linalg.inv(K @ K.T + pull * ridge * C + seen_kk)
        W = W + change
        if D is None:
            D = tolerance * loss(W)
            Z = np.sqrt(D)
        Z = max(Z + (loss(W) - D) / np.sqrt(D), np.sqrt(D))
        values = W @ K
        seen_vk, seen_kk = seen_vk + values @ K.T, seen_kk + K @ K.T
        yield change


def rlsedit(C, W, batches, ridge, norm_ridge):
    """The recursion of its paper: the inverse is carried, and V = W K + R is the target."""
    inverse = np.linalg.inv(norm_ridge * np.eye(len(C)) + ridge * C)
    for K, R in batches:
        target = (W @ K + R).T
        F = inverse @ K
        inverse = inverse - F @ np.linalg.inv(np.eye(K.shape[1]) + K.T @ F) @ F.T
        new = (W.T + inverse @ K @ (target - K.T @ W.T)).T
        yield new - W
        W = new


def norm_anchor(values, shifts, quantile=0.95):
    """v* of each fact, given the mean length, with the longest left out of the mean."""
    stars = [value + shift for value, shift in zip(values, shifts, strict=True)]
    lengths = sorted(np.linalg.norm(star) for star in stars)
    dropped = int(np.floor((1 - quantile) * len(lengths) + 1e-9))
    mean = np.mean(lengths[: len(lengths) - dropped])
    return np.array([
        value if np.linalg.norm(star) > 2 * mean else star / np.linalg.norm(star) * mean
        for value, star in zip(values, stars, strict=True)
    ])
