"""What goes wrong when a program is read."""

from __future__ import annotations


class ProgramError(Exception):
    """Program text or bytes that cannot be read; says what is wrong, where, and what to do."""
