"""Advantage estimators: ``f(rollout, *, options...) -> Advantages`` over pure tensor functions.

Axes: ``T`` decision step, ``N`` environment, ``E`` episode of the rollout, ``M`` group of episodes
with the same initial state and instruction. Discounts count decision steps (one chunk is one step).
Rows with ``valid`` False were not stepped: they enter no sum, no statistic and no recursion, get
advantage 0 and are not kept.
"""
