"""The workers that stay up for all tests of this folder."""

from collections.abc import Iterator

import pytest

from farandole.plugins.conformance.servers import WorkerServers
from farandole.plugins.pytest.suite import servers_of


@pytest.fixture(scope="session")
def worker_servers(pytestconfig: pytest.Config) -> Iterator[WorkerServers]:
    """Yield the same that the classes of `Conformance` use."""
    with servers_of(pytestconfig) as servers:
        yield servers
