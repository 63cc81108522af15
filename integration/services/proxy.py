"""milterchain itself, started as its users start it: `milterchain run -c FILE`."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from integration.services.process import Run, Service, answers, free_port

LAUNCH = "from milterchain.cli import main; main()"


@dataclass(slots=True)
class Proxy:
    """A running milterchain.

    Attributes:
        address: where it takes SMTP, as `HOST:PORT`.
        config: its configuration file.
    """

    run: Run
    name: str
    address: str
    config: Path
    service: Service

    @property
    def pid(self) -> int:
        """Of its process."""
        return self.service.pid

    def stop(self) -> int:
        """Let it drain and end; its exit status."""
        return self.service.stop(timeout=30)


def milter_table(name: str, address: str, settings: Mapping[str, str] | None = None) -> str:
    """One `[[milter]]` of the configuration; the values of `settings` are TOML."""
    lines = ["[[milter]]", f'name = "{name}"', f'address = "{address}"']
    lines += [f"{key} = {value}" for key, value in (settings or {}).items()]
    return "\n".join(lines) + "\n"


def start_proxy(
    run: Run,
    *,
    next_hop: str,
    milters: Sequence[str] = (),
    name: str = "milterchain",
    host: str = "127.0.0.1",
    hostname: str = "mx.example.test",
    message_size: str = "50MiB",
    listen: str = "",
    extra: str = "",
    level: str = "warning",
    trusted_networks: str = '["127.0.0.0/8"]',
    relay_domains: str = "[]",
    relay: str = "",
) -> Proxy:
    """Write a configuration and start milterchain with it.

    Args:
        run: that owns it.
        next_hop: as the configuration spells it, such as `smtp:127.0.0.1:10025`.
        milters: `[[milter]]` tables in their order, see `milter_table`.
        name: of its directory and log.
        host: where it listens; an IPv6 address in brackets.
        hostname: its own name, in the greeting and in Received.
        message_size: the limit, as the configuration spells it.
        listen: more lines of the `[[listen]]` table.
        extra: more tables.
        level: of its log.
        trusted_networks: who may send anywhere, in TOML.
        relay_domains: where anybody may send, in TOML.
        relay: more lines of `[relay]`.
    """
    address = f"{host}:{free_port(host.strip('[]'))}"
    text = "\n".join(
        (
            f'hostname = "{hostname}"',
            f'[[listen]]\nname = "smtp"\naddress = "{address}"\n{listen}',
            "[dns]\nlookup = false",
            f"[access]\ntrusted_networks = {trusted_networks}\nrelay_domains = {relay_domains}",
            f'[relay]\nnext_hop = ["{next_hop}"]\n{relay}',
            f'[limits]\nconnections_per_client = 500\nmessage_size = "{message_size}"',
            f'[log]\nlevel = "{level}"',
            *milters,
            extra,
        )
    )
    return run_proxy(run, text, address, name=name)


def run_proxy(
    run: Run,
    text: str,
    address: str,
    *,
    name: str = "milterchain",
    flags: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Proxy:
    """Start milterchain with this configuration.

    Args:
        run: that owns it.
        text: of its file.
        address: where it takes SMTP then; of several listeners one that is ready when all are.
        name: of its directory and log.
        flags: more of the command line.
        env: more of the environment.
    """
    config = run.place(name) / "milterchain.toml"
    config.write_text(text)
    service = run.spawn(name, (sys.executable, "-c", LAUNCH, "run", "-c", str(config), *flags), env=env)
    service.wait_ready(lambda: answers(f"inet:{address}"))
    return Proxy(run, name, address, config, service)
