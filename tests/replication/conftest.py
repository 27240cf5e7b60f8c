"""Servers that replicate with each other; whatever a test leaves behind is killed."""

import pytest
from parts.mesh import Mesh
from parts.pairing import Node


@pytest.fixture
def mesh(tmp_path, make_database):
    """Makes servers of a new database each."""
    mesh = Mesh(tmp_path, make_database)
    yield mesh
    mesh.close()


@pytest.fixture
def make_nodes(make_server):
    """Makes servers in this process that are peers of each other."""
    made = []

    def make(*names: str, settings=None) -> list[Node]:
        nodes = [
            Node(make_server({"SERVER__NAME": name, **(settings or {})}), name) for name in names
        ]
        made.extend(nodes)
        for node in nodes:
            for other in nodes:
                if other is not node:
                    node.add_peer(other)
        return nodes

    yield make
    for node in made:
        node.close()


@pytest.fixture
def pair(make_nodes):
    return make_nodes("a.test", "b.test")
