"""
A WSGI application that has a pool and runs commands; see gunicorn_conf.py.
"""

import os

import safespawn

pool = None  # not made as the module is imported: the pool's workers import it too, for `square`


def open_pool():
    global pool
    pool = safespawn.Pool(1, name="web")


def square(number):
    return number * number


def application(environ, start_response):
    number = int(environ["PATH_INFO"].strip("/") or 0)
    greeting = safespawn.check_output(["echo", "hello"], text=True, timeout=10).strip()
    text = f"{os.getpid()} {greeting} {pool.apply(square, (number,), timeout=10)}"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]
