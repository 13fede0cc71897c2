"""
gunicorn: each worker is a fork of the master, with a zygote and a pool of its own.

    gunicorn -c gunicorn_conf.py gunicorn_app:application

What the master starts by safespawn before it forks (with ``preload_app`` and a pool at import, say) stays the master's,
and its forks are told so: ForeignCopy.
"""

import safespawn

workers = 2


def post_fork(server, worker):
    safespawn.init(guard="off", preload=[])  # zygote and template of this worker, before its first request


def post_worker_init(worker):
    import gunicorn_app

    gunicorn_app.open_pool()
