"""Interfaces of other projects, over this one's engines."""
