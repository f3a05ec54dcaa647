"""Chat models as players of Atari: screens in, ``{"reasoning": ..., "action": ...}`` out.

After N. Waytowich et al., "Atari-GPT: Benchmarking Multimodal Large Language Models as Low-Level
Policies in Atari Games", 2024 (arXiv 2408.15950). ``python -m embodied_rl.atari_chat`` plays,
prints a table of scores and writes films.
"""
