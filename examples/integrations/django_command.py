"""
Django: a management command that runs a pool. One file is the project, the application and its command.

    python django_command.py thumbnails a.jpg b.jpg
"""

import sys

import django
from django.conf import settings
from django.core.management import BaseCommand, call_command

import safespawn


def thumbnail(name):
    from django.utils.text import slugify  # a worker has what its initializer has set up

    return f"{slugify(name.rpartition('.')[0])}.png"


def set_up():
    if not settings.configured:
        settings.configure(SECRET_KEY="no secret", USE_TZ=True)
    django.setup()


class Command(BaseCommand):
    help = "Makes thumbnails, several at a time."

    def add_arguments(self, parser):
        parser.add_argument("names", nargs="+")
        parser.add_argument("--workers", type=int, default=2)

    def handle(self, *args, names, workers, **options):
        with safespawn.Pool(workers, initializer=set_up) as pool:
            for name, made in zip(names, pool.imap(thumbnail, names), strict=True):
                self.stdout.write(f"{name} -> {made}")


if __name__ == "__main__":
    set_up()
    call_command(Command(), *sys.argv[2:])
