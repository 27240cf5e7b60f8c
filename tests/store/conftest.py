"""Hosts over one database, without HTTP."""

import pytest
from host import Host

from identity.config import load
from identity.keys.service import SigningKeys, create_key_files


@pytest.fixture
def make_host(make_database_url, tmp_path, clock):
    """Makes hosts that share one database and one set of keys."""
    made = []
    settings = {
        "IDENTITY_SERVER__DATA_DIR": str(tmp_path / "data"),
        "IDENTITY_SERVER__NAME": "id.test",
        "IDENTITY_SERVER__PUBLIC_URL": "https://id.test",
        "IDENTITY_DATABASE__URL": make_database_url(),
    }
    config = load(None, settings)
    create_key_files(config.signing_keys_path, config.storage_keys_path)

    def make(*, clock=clock, signing_keys=SigningKeys) -> Host:
        made.append(Host(config, clock, signing_keys))
        return made[-1]

    yield make
    for host in made:
        host.close()


@pytest.fixture
def host(make_host) -> Host:
    return make_host()
