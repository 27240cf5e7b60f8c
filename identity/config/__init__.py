"""The configuration: read once, checked in full, handed to everyone as frozen types.

`sections` says which keys exist, with types and defaults; `root` is the whole with what follows
from it; `loader` reads the file, `environment` the variables; `values` parses single values;
`explain` and `faults` put what is wrong into words.
"""

from identity.config.faults import ConfigError, Fault
from identity.config.loader import find_path, find_secret_files, load, parse
from identity.config.root import Config
from identity.config.sections import (
    Database,
    Email,
    Federation,
    Http,
    Internal,
    Invites,
    Keys,
    LegacyApi,
    Logging,
    Lookup,
    Metrics,
    Notices,
    RateLimits,
    Replication,
    Retention,
    Server,
    Sms,
    Terms,
    Twilio,
    Validation,
)
from identity.config.values import Listen

__all__ = [
    "Config",
    "ConfigError",
    "Database",
    "Email",
    "Fault",
    "Federation",
    "Http",
    "Internal",
    "Invites",
    "Keys",
    "LegacyApi",
    "Listen",
    "Logging",
    "Lookup",
    "Metrics",
    "Notices",
    "RateLimits",
    "Replication",
    "Retention",
    "Server",
    "Sms",
    "Terms",
    "Twilio",
    "Validation",
    "find_path",
    "find_secret_files",
    "load",
    "parse",
]
