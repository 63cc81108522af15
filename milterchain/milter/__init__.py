"""The milter protocol: a sans-IO core for both roles, and thin asyncio clients and servers on top."""
