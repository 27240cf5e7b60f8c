"""Policies as the operator writes them, and what is still to be accepted: pure.

Source: Matrix Identity Service API, "Terms of service"; MSC2140.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from identity.errors import SetupError


class _Translation(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1)
    url: str = Field(pattern=r"^https?://\S+$", max_length=2048)


class _Policy(BaseModel):
    model_config = ConfigDict(extra="forbid")
    version: str = Field(coerce_numbers_to_str=True, min_length=1)
    langs: dict[str, _Translation] = Field(min_length=1)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    docs: dict[str, _Policy] = {}
    # Accepted for the sake of existing files, without effect: a new version has a new URL.
    master_version: Any = None


@dataclass(frozen=True, slots=True)
class Policies:
    """`documents`: as `GET /terms` gives them out. `urls`: for each policy, its URLs in all
    languages, any one of which stands for the policy."""

    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    urls: tuple[frozenset[str], ...] = ()

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """No file: no policies. Raises: SetupError."""
        if path is None:
            return cls()
        try:
            file = _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SetupError(f"{path} cannot be read: {type(error).__name__}") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise SetupError(f"{path}: {place}: {first['msg']}") from None
        documents = {
            policy_id: {"version": policy.version}
            | {
                language: {"name": item.name, "url": item.url}
                for language, item in policy.langs.items()
            }
            for policy_id, policy in file.docs.items()
        }
        urls = tuple(
            frozenset(item.url for item in policy.langs.values()) for policy in file.docs.values()
        )
        return cls(documents, urls)

    @property
    def all_urls(self) -> frozenset[str]:
        return frozenset().union(*self.urls)

    def are_accepted(self, accepted: AbstractSet[str]) -> bool:
        """Whether each policy is accepted, in whatever language."""
        return all(urls & accepted for urls in self.urls)
