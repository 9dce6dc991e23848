"""The hosts of a job, as horovodrun's `-H` writes them: `a:2,b:2`."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import OptionError

LOOPBACK = frozenset({"localhost", "127.0.0.1"})


@dataclass(frozen=True)
class Host:
    """A machine, and how many workers it takes."""

    name: str
    slots: int


def parse_hosts(text: str) -> tuple[Host, ...]:
    """Read `name:slots`, separated by commas.

    Raises:
        OptionError: a part is not of that form.
    """
    hosts = []
    for part in text.split(","):
        name, _, slots = part.strip().rpartition(":")
        if not name or not slots.isdecimal() or int(slots) == 0:
            raise OptionError(f"--hosts {text!r}: {part.strip()!r} is not host:slots. For example: --hosts a:2,b:2")
        hosts.append(Host(name, int(slots)))
    return tuple(hosts)


def place(hosts: tuple[Host, ...], workers: int) -> tuple[Host, ...]:
    """Return the hosts that `workers` workers fill in this order, each with its number of workers.

    Raises:
        OptionError: they have fewer slots.
    """
    total = sum(host.slots for host in hosts)
    if workers > total:
        raise OptionError(f"-n {workers} is more than the {total} slots of --hosts: ask for -n {total}, or add slots")
    placed, left = [], workers
    for host in hosts:
        if left:
            placed.append(Host(host.name, min(host.slots, left)))
            left -= placed[-1].slots
    return tuple(placed)
