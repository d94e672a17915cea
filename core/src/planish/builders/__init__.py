"""Builders that core ships."""
