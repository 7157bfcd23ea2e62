"""Decisions (which order) and operators (which reduction) on state space systems."""
