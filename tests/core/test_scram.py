"""SCRAM-SHA-256: the vectors of RFC 7677, and that nothing but the right proof is taken."""

from __future__ import annotations

from base64 import b64decode, b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.core.scram import ITERATIONS_MAX, NONCE_BYTES, Exchange, Prover, keys_of, read_first
from taskq.errors import AuthFailed, ProtocolError

# RFC 7677, section 3: user, pencil
RFC_CLIENT, RFC_SERVER = b"rOprNGfwEbeRWgbNEkqO", b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
RFC_CHALLENGE = b"r=" + RFC_CLIENT + RFC_SERVER + b",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
RFC_FINAL = b"c=biws,r=" + RFC_CLIENT + RFC_SERVER + b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
RFC_SIGNATURE = b64decode("6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
SALT = bytes(range(16))


def prover(password: str = "secret", name: str = "mailer") -> Prover:
    return Prover(name, password, lambda size: bytes(range(size)))


def rfc_prover() -> Prover:
    return Prover("user", "pencil", lambda size: b64decode(RFC_CLIENT))


def exchange(client: Prover, password: str = "secret") -> Exchange:
    keys = keys_of(password.encode(), SALT, 1)
    return Exchange.begin(read_first(client.first()), bytes(range(100, 100 + NONCE_BYTES)), SALT, 1, keys.stored, keys.server)


def test_the_client_says_what_the_rfc_says() -> None:
    client = rfc_prover()
    assert client.first() == b"n,,n=user,r=" + RFC_CLIENT
    assert client.final(RFC_CHALLENGE) == RFC_FINAL
    assert client.confirms(RFC_SIGNATURE)


def test_the_server_takes_the_proof_of_the_rfc_and_signs_as_it_says() -> None:
    keys = keys_of(b"pencil", b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4_096)
    server = Exchange(read_first(b"n,,n=user,r=" + RFC_CLIENT), RFC_CLIENT + RFC_SERVER, RFC_CHALLENGE, keys.stored, keys.server)
    assert server.verify(RFC_FINAL) == (True, RFC_SIGNATURE)


def test_both_sides_of_ours_agree() -> None:
    client = prover()
    server = exchange(client)
    is_right, signature = server.verify(client.final(server.challenge))
    assert is_right and client.confirms(signature)


@given(at=st.integers(0, 31), bit=st.integers(0, 7))
def test_a_proof_with_one_wrong_bit_is_wrong(at: int, bit: int) -> None:
    client = prover()
    server = exchange(client)
    head, _, proof = client.final(server.challenge).rpartition(b",p=")
    wrong = bytearray(b64decode(proof))
    wrong[at] ^= 1 << bit
    assert not server.verify(head + b",p=" + b64encode(bytes(wrong)))[0]


def test_another_password_another_nonce_another_header_are_wrong() -> None:
    client = prover("other")
    server = exchange(client)
    assert not server.verify(client.final(server.challenge))[0]
    client = prover()
    server = exchange(client)
    final = client.final(server.challenge)
    assert not server.verify(final.replace(b"c=biws", b"c=eSws"))[0]
    assert not server.verify(final.replace(b",r=A", b",r=B"))[0]


def test_a_proof_that_was_overheard_is_worth_nothing_in_another_exchange() -> None:
    client = prover()
    server = exchange(client)
    overheard = client.final(server.challenge)
    keys = keys_of(b"secret", SALT, 1)
    again = Exchange.begin(read_first(client.first()), bytes(NONCE_BYTES), SALT, 1, keys.stored, keys.server)
    assert not again.verify(overheard)[0]


def test_what_the_broker_keeps_makes_no_proof() -> None:
    keys = keys_of(b"secret", SALT, 1)
    for stolen in (keys.stored, keys.server):
        client = prover(stolen.hex())
        server = exchange(client)
        assert not server.verify(client.final(server.challenge))[0]


FIRSTS = [
    b"", b"n,,", b"n,,n=a", b"n,,n=a,r=", b"n,,n=a,r=short", b"n=a,r=12345678", b"p=tls-unique,,n=a,r=12345678", b"n,a=b,n=a,r=12345678",
    b"n,,m=x,n=a,r=12345678", b"n,,n=a,r=12345678,x=y", b"n,,n=a=2C,r=12345678", b"n,,n=a b,r=12345678", b"n,,n=a,r=1234\x005678",
    b"n,,n=\xff,r=12345678",
    b"n,,n=" + b"a" * 65 + b",r=12345678", b"n,,n=a,r=" + b"1" * 129, b"n,,n=a,r=12345678\n",
]  # fmt: skip


@pytest.mark.parametrize("first", FIRSTS)
def test_what_is_no_first_message_is_a_protocol_error(first: bytes) -> None:
    with pytest.raises(ProtocolError, match="must be n,,n=NAME"):
        read_first(first)


@pytest.mark.parametrize("final", [b"", b"c=biws", b"c=biws,r=12345678,p=", b"c=biws,r=12345678,p=" + b"=" * 44, b"c=biws,r=12345678,p=" + b"!" * 44])
def test_what_is_no_final_message_is_a_protocol_error(final: bytes) -> None:
    with pytest.raises(ProtocolError, match="must be c=biws"):
        exchange(prover()).verify(final)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_as_what_they_are(data: bytes) -> None:
    for read in (read_first, exchange(prover()).verify):
        with pytest.raises(ProtocolError):
            read(data)


@pytest.mark.parametrize(
    "challenge",
    [
        b"",
        b"r=AAECAwQFBgcICQoLDA0ODxAR,s=AAAA,i=1",
        b"r=somebodyelse,s=AAAA,i=1",
        b"r=AAECAwQFBgcICQoLDA0ODxARxx,s=A===,i=1",
        b"r=AAECAwQFBgcICQoLDA0ODxARxx,s=AAAA,i=0",
        b"r=AAECAwQFBgcICQoLDA0ODxARxx,s=AAAA,i=%d" % (ITERATIONS_MAX + 1),
        b"r=AAECAwQFBgcICQoLDA0ODxARxx,s=AAAA,i=999999999",
    ],
)
def test_a_challenge_that_is_none_gets_no_proof(challenge: bytes) -> None:
    client = prover()
    client.first()
    with pytest.raises(AuthFailed):
        client.final(challenge)


def test_each_greeting_has_its_own_nonce() -> None:
    salts = iter([b"a" * 18, b"b" * 18])
    client = Prover("mailer", "secret", lambda size: next(salts))
    assert client.first() != client.first()
