"""Small files that ship with the package."""

if not __name__.startswith("embodied_rl."):
    raise ImportError("import this package as embodied_rl.assets, not as a top-level package")
