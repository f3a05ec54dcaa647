"""Which task or prompt to roll out next.

Every sampler answers ``propose(n)`` and learns from ``update(task_ids, successes, trials)``; see
``embodied_rl.samplers.base.TaskSampler``. Ids of environment tasks and of prompts are the same.
"""

from embodied_rl.samplers.base import TaskSampler

__all__ = ["TaskSampler"]
