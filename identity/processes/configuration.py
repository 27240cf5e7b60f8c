"""Where the configuration comes from, so that a process can read it again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from identity import logs
from identity.config import Config, load


@dataclass(frozen=True, slots=True)
class ConfigSource:
    path: Path | None
    environ: Mapping[str, str]

    def read(self) -> Config:
        """Raises: ConfigError."""
        return load(self.path, self.environ)

    def load(self) -> Config:
        """Read it, and from now on log as it says. Raises: ConfigError."""
        config = self.read()
        logs.configure(config.logging.level, config.logging.format)
        return config
