"""LIBERO: 130 language-conditioned manipulation tasks in five suites, one Panda arm, MuJoCo.

B. Liu et al., "LIBERO: Benchmarking Knowledge Transfer for Lifelong Robot Learning", NeurIPS 2023,
on robosuite 1.4. Observations ``state`` and ``relative`` (see ``layout``) and, on request, upright
images. Action [7] in [-1, 1]: displacement of the hand (1 is 5 cm) and its rotation (axis times
angle, 1 is half a radian) in the frame of the world, and the gripper (positive closes); 20 Hz.

An episode ends with success or after the suite's horizon. It starts from one of the 50 initial
states that the benchmark fixes for each task, after settling without motion.

* ``assets``: where the scenes come from, import without a prompt.
* ``tasks``: names, instructions, goals, initial states.
* ``layout``: what the numbers of an observation mean.
* ``control``: one control step; stepping modes.
* ``simulation``: a built task, shared by the rows of a process.
* ``row``: one environment, for ``embodied_rl.envs.vector``.
* ``env``: ``make``.
* ``expert``: a scripted expert.
"""

from __future__ import annotations

if not __name__.startswith("embodied_rl."):
    raise ImportError("import embodied_rl.envs.libero instead of envs.libero")
