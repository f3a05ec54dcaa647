"""Losses: pure functions over minibatch tensors that return (scalar, detached statistics).

Axes: ``B`` minibatch row (decision step), ``U`` ratio unit (1 chunk | H action | L token | K
denoise step), ``H`` action of a chunk, ``D`` action dimension. Losses are to be minimised and
carry no coefficient. ``mask`` is bool, True for units that count; units outside may hold anything,
NaN included. How units are averaged is an argument, see ``embodied_rl.losses.reduce``.
"""
