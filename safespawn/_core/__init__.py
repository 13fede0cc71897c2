"""
The workflows, written once: plain generators that say what they wait for, and the records they work on.

Runs in: application, any thread.
Never: waits, starts a thread, takes a lock. What is done to descriptors here never blocks.
"""
