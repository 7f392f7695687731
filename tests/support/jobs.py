"""Functions that workers of other processes import."""

import os
import signal


def where(number):
    return number * number, os.getpid()


def square_or_die(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number
