"""Contexts of the server: what they allow, and how they are renewed."""

import shutil
import ssl
from contextlib import suppress

import pytest

from milterchain.smtp import tls
from milterchain.smtp.tls import LOOK_AGAIN, ServerTLS, TLSSettings


def shake(server, client, *, name="mx.example"):
    """A handshake in memory; both ends."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.context().wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(5):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    # With TLS 1.3 the server's view of the client is complete only now.
    for end in ends:
        end.do_handshake()
    return ends


@pytest.fixture
def settings(certificates):
    def make(**more):
        return TLSSettings(certificate=certificates / "server.pem", key=certificates / "server.key", **more)

    return make


def test_session(settings, client_context):
    server = ServerTLS(settings())
    session = server.session(shake(server, client_context())[1])
    assert (session.version, session.cipher, session.bits) == ("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256)
    assert (session.requested, session.verified, session.subject, session.issuer) == (False, False, "", "")
    assert session.sni == "mx.example"


@pytest.mark.parametrize("wanted", ["request", "require"])
def test_client_certificate(settings, certificates, client_context, wanted):
    server = ServerTLS(settings(client_certificates=wanted, client_ca=certificates / "authority.pem"))
    session = server.session(shake(server, client_context("client"))[1])
    assert (session.requested, session.verified) == (True, True)
    assert (session.subject, session.issuer) == ("client.example", "Example authority")


def test_no_client_certificate(settings, certificates, client_context):
    server = ServerTLS(settings(client_certificates="request", client_ca=certificates / "authority.pem"))
    session = server.session(shake(server, client_context())[1])
    assert (session.requested, session.verified, session.subject) == (True, False, "")


@pytest.mark.parametrize(
    ("wanted", "shown"), [("require", None), ("require", "foreign"), ("request", "foreign")]
)
def test_refused_client(settings, certificates, client_context, wanted, shown):
    server = ServerTLS(settings(client_certificates=wanted, client_ca=certificates / "authority.pem"))
    with pytest.raises(ssl.SSLError):
        shake(server, client_context(shown))


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_minimum_version(settings, client_context, newest):
    client = client_context()
    client.maximum_version = newest
    assert shake(ServerTLS(settings()), client)[1].version() == newest.name.replace("v1_", "v1.")
    server = ServerTLS(settings(minimum_version="1.3"))
    if newest is ssl.TLSVersion.TLSv1_3:
        shake(server, client)
    else:
        with pytest.raises(ssl.SSLError):
            shake(server, client)


def test_ciphers(settings, client_context):
    client = client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    server = ServerTLS(settings(ciphers="ECDHE-ECDSA-AES128-GCM-SHA256"))
    session = server.session(shake(server, client)[1])
    assert (session.cipher, session.bits) == ("ECDHE-ECDSA-AES128-GCM-SHA256", 128)


def test_key_in_the_same_file(certificates, client_context, tmp_path):
    both = tmp_path / "both.pem"
    both.write_bytes((certificates / "server.key").read_bytes() + (certificates / "server.pem").read_bytes())
    shake(ServerTLS(TLSSettings(certificate=both)), client_context())


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"certificate": "none.pem"}, "No such file"),
        ({"key": "none.key"}, "No such file"),
        ({"certificate": "text"}, r"text and .*server\.key: no certificate or no key in PEM"),
        ({"key": "text"}, "no certificate or no key in PEM"),
        ({"key": "renewed.key"}, "the key does not belong to the certificate"),
        ({"client_ca": "text", "client_certificates": "require"}, "text: no certificate or no key in PEM"),
        ({"ciphers": "NONSENSE"}, "'NONSENSE' has no cipher that OpenSSL knows"),
    ],
)
def test_mistakes(certificates, tmp_path, files, complaint):
    for path in certificates.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "text").write_text("hello")
    chosen = {"certificate": "server.pem", "key": "server.key", **files}
    for name in ("certificate", "key", "client_ca"):
        if name in chosen:
            chosen[name] = tmp_path / chosen[name]
    with pytest.raises((OSError, ValueError), match=complaint):
        ServerTLS(TLSSettings(**chosen))


def serial(ends):
    return ends[0].getpeercert()["serialNumber"]


def test_renewal(certificates, client_context, tmp_path, caplog):
    now = 0.0
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(certificates / "server.pem", certificate)
    shutil.copy(certificates / "server.key", key)
    server = ServerTLS(TLSSettings(certificate=certificate, key=key), clock=lambda: now)
    assert serial(shake(server, client_context())) == "01"
    shutil.copy(certificates / "renewed.pem", tmp_path / "new.pem")
    (tmp_path / "new.pem").rename(certificate)
    # Not looked at yet; then there is half a pair, which is not used, and told once.
    assert serial(shake(server, client_context())) == "01"
    for _ in range(2):
        now += LOOK_AGAIN
        assert serial(shake(server, client_context())) == "01"
    assert caplog.text.count("the old certificate stays in use") == 1
    shutil.copy(certificates / "renewed.key", tmp_path / "new.key")
    (tmp_path / "new.key").rename(key)
    now += LOOK_AGAIN
    assert serial(shake(server, client_context())) == "02"
    certificate.unlink()
    now += LOOK_AGAIN
    assert serial(shake(server, client_context())) == "02"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ((), ""),
        (((("organizationName", "x"),),), ""),
        (((("commonName", "a"),), (("organizationName", "x"), ("commonName", "b"))), "b"),
        (((("commonName", "a\0b\r\nc\x85é"),),), "a?b??c?é"),
    ],
)
def test_common_name(name, found):
    assert tls._common_name(name) == found


@pytest.mark.parametrize("name", ["x" * 256, "a b", "a\r\nb", "ä.example", ""])
def test_server_names_that_are_none(settings, name):
    server = ServerTLS(settings())
    made = object.__new__(ssl.SSLObject)
    server._note_name(made, name, server.context())
    assert not server._names
