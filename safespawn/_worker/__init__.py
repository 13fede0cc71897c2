"""
What a pool's worker is made of, and the forms in which tasks and results travel between it and the application.

Runs in: workers; the application imports the forms only.
Never: at import, anything that a task's own modules would have to pay for.
"""
