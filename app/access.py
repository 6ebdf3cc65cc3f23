"""Who may change things here: a rule over the way a visitor comes and who they signed in as.

Data in, data out; knows nothing of Streamlit. ``app.people`` asks it, and enforces what it says.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

#: What proxies add to requests. One of them means that somebody may be on another machine.
FORWARDED = ("forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip", "cf-ray")
_ADDRESS = re.compile(r"[^@\s]+@[^@\s]+")


@dataclass(frozen=True, slots=True)
class Connection:
    """The way a visitor comes.

    ``server_address`` is what the server listens on, ``peer_address`` the other end of the connection, each None where
    it is not known. The names of ``headers`` are lower case.
    """

    server_address: str | None
    peer_address: str | None
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Account:
    """Who the sign-in provider says a visitor is. ``is_verified``: it has seen that the address is theirs."""

    email: str | None
    is_verified: bool


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who looks at a page: what they are called (empty where nobody knows), and why they may change nothing.

    ``refusal`` is one sentence, None for those who may change things.
    """

    name: str
    refusal: str | None
    is_signed_in: bool = False

    @property
    def may_change(self) -> bool:
        """Whether they may launch, cancel, edit, import and delete."""
        return self.refusal is None


def visitor(
    connection: Connection,
    account: Account | None,
    *,
    has_sign_in: bool,
    launchers: str,
    os_user: str,
) -> Visitor:
    """Who this is and what they may do.

    Args:
        connection: the way they come.
        account: who they signed in as, None where they did not.
        has_sign_in: whether signing in is set up; then it alone decides, on this machine too.
        launchers: the list of those who may change things, as :func:`launchers_of` reads it.
        os_user: the account that the server runs under.
    """
    if not has_sign_in:
        if is_from_here(connection):
            return Visitor(os_user, None)
        return Visitor("", "Only who is on its own machine may change things here, as no sign-in is set up.")
    if account is None:
        return Visitor("", "Sign in to launch runs and to change what is stored.")
    if not account.email:
        return Visitor("", "The sign-in provider tells no e-mail address of you.", is_signed_in=True)
    if not account.is_verified:
        sentence = f"The sign-in provider does not say that {account.email} is a verified address."
        return Visitor(account.email, sentence, is_signed_in=True)
    try:
        is_launcher = _normal(account.email) in launchers_of(launchers)
    except ValueError as error:
        return Visitor(account.email, f"{error}.", is_signed_in=True)
    if not is_launcher:
        sentence = f"{account.email} is not among those who may change things here."
        return Visitor(account.email, sentence, is_signed_in=True)
    return Visitor(account.email, None, is_signed_in=True)


def is_from_here(connection: Connection) -> bool:
    """Whether a visitor is surely on this machine: the server listens on loopback only, and no proxy is between.

    Each sign of another machine counts, since a proxy may leave any of them out. A browser sends the host that its
    address bar shows, so that another name than this machine's own means a proxy or a forged name; and it sends the
    origin of the page, which no other page has, also none that another program serves on this machine.
    """
    headers = connection.headers
    if any(name in FORWARDED or name.startswith("x-forwarded") for name in headers):
        return False
    host = headers.get("host", "")
    origin = headers.get("origin", f"http://{host}")
    return (
        _is_loopback(connection.server_address)
        and _is_loopback(connection.peer_address)
        and _is_loopback(_hostname(host))
        and origin.partition("://")[2].lower() == host.lower()
    )


def launchers_of(text: str) -> frozenset[str]:
    """The e-mail addresses in a list separated by commas or blanks.

    Raises:
        ValueError: one sentence, when something in it is no address.
    """
    words = re.split(r"[\s,;]+", text.strip(" \t\r\n,;"))
    for word in words:
        if word and not _ADDRESS.fullmatch(word):
            raise ValueError(
                f"PEFT_LAB_LAUNCHERS: {word[:80]!r} is no e-mail address; give addresses separated by commas"
            )
    return frozenset(_normal(word) for word in words if word)


def _normal(email: str) -> str:
    return email.strip().casefold()


def _hostname(host: str) -> str | None:
    """A host as requests name it, without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_loopback(host: str | None) -> bool:
    if not host:
        return False
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
