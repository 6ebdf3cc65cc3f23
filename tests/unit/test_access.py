"""Who may change things: on this machine itself, from elsewhere, and signed in."""

from __future__ import annotations

import pytest

from app.access import Account, Connection, Visitor, is_from_here, launchers_of, visitor

HERE = {"host": "127.0.0.1:8501", "origin": "http://127.0.0.1:8501"}
ADA = Account("ada@example.org", is_verified=True)


def connection(server: str | None = "127.0.0.1", peer: str | None = "127.0.0.1", **changed: str | None) -> Connection:
    headers = {**HERE, **{name.replace("_", "-"): value for name, value in changed.items()}}
    return Connection(server, peer, {name: value for name, value in headers.items() if value is not None})


def signed_in(account: Account | None, launchers: str = "ada@example.org", at: Connection | None = None) -> Visitor:
    return visitor(at or connection(), account, has_sign_in=True, launchers=launchers, os_user="root")


@pytest.mark.parametrize(
    "at",
    [
        connection(),
        connection(server="localhost", host="localhost:8501", origin="http://localhost:8501"),
        connection(server="::1", peer="::1", host="[::1]:8501", origin="http://[::1]:8501"),
        connection(peer="::ffff:127.0.0.1"),
        # Through an ssh tunnel: whoever opened that has an account here.
        connection(host="localhost:9000", origin="http://localhost:9000"),
        connection(host="lab.localhost:8501", origin="http://lab.localhost:8501"),
        connection(origin=None),
    ],
)
def test_a_browser_on_this_machine_may_change_things_under_the_name_of_its_account(at: Connection) -> None:
    assert is_from_here(at)
    assert visitor(at, None, has_sign_in=False, launchers="", os_user="root") == Visitor("root", None)


@pytest.mark.parametrize(
    "at",
    [
        connection(server="0.0.0.0"),
        connection(server=None),
        connection(server="192.0.2.7"),
        connection(server="unix:///run/lab.sock"),
        connection(peer="192.0.2.9"),
        connection(peer=None),
        connection(host="lab.example.org", origin="https://lab.example.org"),
        connection(host="127.0.0.1.example.org", origin="http://127.0.0.1.example.org"),
        connection(host=None, origin=None),
        # A proxy that gives its own host, or another page in a browser on this machine.
        connection(origin="https://lab.example.org"),
        connection(origin="http://127.0.0.1:3000"),
        connection(origin="null"),
        connection(host="[::1"),
        *(
            connection(**{name: "127.0.0.1"})
            for name in ("forwarded", "via", "x_real_ip", "x_forwarded_for", "x_forwarded_host", "x_forwarded_proto")
        ),
    ],
)
def test_any_sign_of_another_machine_makes_view_only_of_it_without_sign_in(at: Connection) -> None:
    found = visitor(at, None, has_sign_in=False, launchers="ada@example.org", os_user="root")
    assert not found.may_change
    assert found.refusal == "Only who is on its own machine may change things here, as no sign-in is set up."


def test_where_sign_in_is_set_up_it_alone_decides_also_on_this_machine() -> None:
    elsewhere = connection(server="0.0.0.0", peer="192.0.2.9", x_forwarded_for="192.0.2.9")
    assert signed_in(ADA, at=elsewhere) == Visitor("ada@example.org", None, is_signed_in=True)
    assert not signed_in(None, at=connection()).may_change
    assert "Sign in" in str(signed_in(None).refusal)


@pytest.mark.parametrize(
    ("account", "launchers", "reason"),
    [
        (Account("bob@example.org", True), "ada@example.org", "bob@example.org is not among those"),
        (ADA, "", "ada@example.org is not among those"),
        (Account("ada@example.org", False), "ada@example.org", "does not say that ada@example.org is a verified"),
        (Account(None, True), "ada@example.org", "tells no e-mail address"),
        (Account("", True), "ada@example.org", "tells no e-mail address"),
        (Account("ada@example.org.evil.test", True), "ada@example.org", "is not among those"),
        (ADA, "ada", "PEFT_LAB_LAUNCHERS: 'ada' is no e-mail address"),
    ],
)
def test_who_signed_in_and_is_not_a_verified_launcher_may_only_look(
    account: Account, launchers: str, reason: str
) -> None:
    found = signed_in(account, launchers)
    assert not found.may_change
    assert found.is_signed_in
    assert reason in str(found.refusal)


def test_launchers_are_read_in_any_case_and_however_they_are_separated() -> None:
    assert launchers_of(" Ada@Example.org,bob@example.org\n;eve@example.org ") == {
        "ada@example.org",
        "bob@example.org",
        "eve@example.org",
    }
    assert launchers_of("") == frozenset()
    assert signed_in(Account("ADA@example.org", True)).may_change
