"""HAProxy as a load balancer for SMTP, which tells of its clients by the PROXY protocol."""

from integration.services.process import Run, answers, free_port

CONFIG = """\
global
    maxconn 100
defaults
    mode tcp
    timeout connect 10s
    timeout client 60s
    timeout server 60s
listen smtp
    bind {address}
    server milterchain {server} {option}
"""


def start_haproxy(run: Run, *, server: str, option: str, name: str = "haproxy") -> str:
    """Start it, and return the address of its port.

    Args:
        run: that owns it.
        server: `HOST:PORT` behind it.
        option: `send-proxy` or `send-proxy-v2`.
        name: of its directory and log.
    """
    address = f"127.0.0.1:{free_port()}"
    config = run.place(name) / "haproxy.cfg"
    config.write_text(CONFIG.format(address=address, server=server, option=option))
    service = run.spawn(name, ("/usr/sbin/haproxy", "-db", "-f", str(config)))
    service.wait_ready(lambda: answers(f"inet:{address}"))
    return address
