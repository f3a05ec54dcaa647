"""Rewards of answers in words: plain registered functions of a response and its question.

``reward(response, question, *, options) -> float`` in [0, 1] unless its docstring says otherwise;
``group_rewards`` see all responses to one question and a score of each. ``score`` adds them up.
"""
