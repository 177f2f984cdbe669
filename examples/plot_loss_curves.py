r"""
The losses as functions of the margin
=====================================

Two classes, cosine logits, and the sample margin :math:`\gamma = z_y - z_j` from -1.5 to 1.5: what
cross-entropy, LDAM and MM ask of a row. With a margin, a row that is right still has a loss
until it is far enough from the boundary.
"""

import matplotlib.pyplot as plt
import torch

from imbmargin.losses import ldam_loss, ldam_margins, max_margin, max_margin_loss

gap = torch.linspace(-1.5, 1.5, 601)
logits = torch.stack([gap / 2, -gap / 2], dim=1)
target = torch.zeros(len(gap), dtype=torch.int64)
scale = 10.0

# %%
# Loss
# ----
# LDAM shifts the curve by a constant of the class: little for one with 1,000 rows, 0.5 for one
# with 10. MM shifts each row by its own margin, which depends on where the row is. The jump at the
# boundary is that of :math:`\beta > 1`: a row that is wrong gets more margin than one that is
# right.
margins = ldam_margins(torch.tensor([1000, 10]))
frequent, rare = margins[[0, 0]].float(), margins[[1, 1]].float()
curves = {
    "cross-entropy": ldam_loss(logits, target, torch.zeros(2), scale),
    f"LDAM, 1,000 rows (m = {frequent[0]:.2f})": ldam_loss(logits, target, frequent, scale),
    f"LDAM, 10 rows (m = {rare[0]:.2f})": ldam_loss(logits, target, rare, scale),
    "MM (δ⁻ = 0.6, β = 1.5)": max_margin_loss(logits, target, 0.6, 1.5, scale),
}
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for (name, loss), dashes in zip(curves.items(), ["--", "-", "-", "-"], strict=True):
    ax.plot(gap, loss, dashes, label=name)
ax.axvline(0, color="grey", linewidth=1)
ax.set(xlabel="sample margin γ (below 0: wrong)", ylabel="loss", ylim=(0, 15))
ax.legend(frameon=False)
plt.show()

# %%
# Margin
# ------
# The margin Δ itself: largest at the boundary, where one step decides, and small for rows that are
# far on either side. A larger :math:`\delta^-` makes it smaller everywhere.
fig, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
for delta_neg in (0.3, 0.6, 1.2, 2.4):
    margin = max_margin(logits, target, delta_neg, 1.5)
    axes[0].plot(gap, margin, label=f"δ⁻ = {delta_neg}")
for beta in (1.0, 1.5, 2.0):
    axes[1].plot(gap, max_margin(logits, target, 0.6, beta), label=f"β = {beta}")
for ax, title in zip(axes, ("β = 1.5", "δ⁻ = 0.6"), strict=True):
    ax.axvline(0, color="grey", linewidth=1)
    ax.set(title=title, xlabel="sample margin γ")
    ax.legend(frameon=False)
axes[0].set_ylabel("margin Δ")
plt.show()

# %%
# Surface
# -------
# The loss of MM over both: as a map over the sample margin and :math:`\delta^-`.
deltas = torch.linspace(0, 2.5, 101)
losses = torch.stack([max_margin_loss(logits, target, float(d), 1.5, scale) for d in deltas])
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
image = ax.contourf(gap, deltas, losses, levels=20, cmap="viridis")
ax.axvline(0, color="white", linewidth=1)
ax.set(xlabel="sample margin γ", ylabel="δ⁻ (larger: smaller margin)")
fig.colorbar(image, ax=ax, label="loss of MM")
plt.show()
