"""
The only place that waits: two drivers for the flows of `_core`, and the application's side of the zygote.
"""
