"""Exact tiling: windows, planner, blend, memory."""
