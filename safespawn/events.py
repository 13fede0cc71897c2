"""
What happens to supervised children: the records that `Supervisor.events` yields and ``on_event`` gets.

Runs in: application; plain data.
"""

from safespawn._core.events import (
    Event,
    Exited,
    GaveUp,
    Hung,
    Killed,
    Leaked,
    Ready,
    Restarting,
    Starting,
    Stopping,
)

__all__ = ["Event", "Exited", "GaveUp", "Hung", "Killed", "Leaked", "Ready", "Restarting", "Starting", "Stopping"]
