"""Algorithms: a config and an update, one file each."""
