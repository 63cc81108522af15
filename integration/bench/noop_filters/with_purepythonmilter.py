"""A filter on purepythonmilter that wants every event and does nothing: HOST PORT LOOP."""

# The arguments are what the library hands over.
# ruff: noqa: ARG001
# mypy: ignore-errors

import logging
import sys

import purepythonmilter as ppm
from loops import run

# It warns of every message but the first of a connection.
logging.basicConfig(level=logging.ERROR)


async def on_connect(command: ppm.Connect) -> ppm.Continue:
    return ppm.Continue()


async def on_helo(command: ppm.Helo) -> ppm.Continue:
    return ppm.Continue()


async def on_mail_from(command: ppm.MailFrom) -> ppm.Continue:
    return ppm.Continue()


async def on_rcpt_to(command: ppm.RcptTo) -> ppm.Continue:
    return ppm.Continue()


async def on_data(command: ppm.Data) -> ppm.Continue:
    return ppm.Continue()


async def on_header(command: ppm.Header) -> ppm.Continue:
    return ppm.Continue()


async def on_end_of_headers(command: ppm.EndOfHeaders) -> ppm.Continue:
    return ppm.Continue()


async def on_body_chunk(command: ppm.BodyChunk) -> ppm.Continue:
    return ppm.Continue()


async def on_end_of_message(command: ppm.EndOfMessage) -> ppm.Continue:
    return ppm.Continue()


milter = ppm.PurePythonMilter(
    name="noop",
    hook_on_connect=on_connect,
    hook_on_helo=on_helo,
    hook_on_mail_from=on_mail_from,
    hook_on_rcpt_to=on_rcpt_to,
    hook_on_data=on_data,
    hook_on_header=on_header,
    hook_on_end_of_headers=on_end_of_headers,
    hook_on_body_chunk=on_body_chunk,
    hook_on_end_of_message=on_end_of_message,
    restrict_symbols=None,
)
run(milter.start_server(host=sys.argv[1], port=int(sys.argv[2])), sys.argv[3])
