"""Filters run on uvloop in production, on asyncio where that is missing: the tests run on both."""

import asyncio

import uvloop

BOTH = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
ONE = {"asyncio": asyncio.new_event_loop}


def pytest_asyncio_loop_factories(config, item):  # noqa: ARG001 - pytest-asyncio's signature
    return BOTH if item.path.name in {"test_filter.py", "test_running.py"} else ONE
