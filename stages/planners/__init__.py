"""Planners: how a run spends its budget over grids."""

from stages.planners.base import PLANNERS, Planner, Task, make_planner

__all__ = ["PLANNERS", "Planner", "Task", "make_planner"]
