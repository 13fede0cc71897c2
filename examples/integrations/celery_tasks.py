"""
Celery: tasks that run commands and use a pool.

    celery -A celery_tasks worker --pool prefork        (or solo, or threads)

A prefork worker's processes are forks of its main process; each has a zygote of its own, with its first command.
"""

import os

from celery import Celery

import safespawn

FOLDER = os.environ["CELERY_FOLDER"]  # files instead of a broker, so that the example needs none

app = Celery("celery_tasks", broker="filesystem://", backend=f"file://{FOLDER}")
app.conf.broker_transport_options = dict.fromkeys(("data_folder_in", "data_folder_out", "control_folder"), FOLDER)


def square(number):
    return number * number


@app.task
def listing(path):
    return safespawn.check_output(["ls", path], text=True, timeout=10).split()


@app.task
def squares(numbers):
    with safespawn.Pool(2) as pool:
        return pool.map(square, numbers)
