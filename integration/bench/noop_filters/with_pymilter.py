"""A filter on pymilter that wants every event and does nothing: HOST PORT."""

# libmilter's callbacks; and there are no types for the Milter module.
# ruff: noqa: ARG002, D102
# mypy: ignore-errors

import sys

import Milter


class Noop(Milter.Base):
    """Says CONTINUE to everything."""

    def connect(self, hostname, family, address):
        return Milter.CONTINUE

    def hello(self, name):
        return Milter.CONTINUE

    def envfrom(self, sender, *parameters):
        return Milter.CONTINUE

    def envrcpt(self, recipient, *parameters):
        return Milter.CONTINUE

    def data(self):
        return Milter.CONTINUE

    @Milter.decode("bytes")
    def header(self, name, value):
        return Milter.CONTINUE

    def eoh(self):
        return Milter.CONTINUE

    def body(self, chunk):
        return Milter.CONTINUE

    def eom(self):
        return Milter.CONTINUE

    def abort(self):
        return Milter.CONTINUE

    def close(self):
        return Milter.CONTINUE


Milter.factory = Noop
Milter.set_flags(0)
Milter.runmilter("noop", f"inet:{sys.argv[2]}@{sys.argv[1]}", 0)
