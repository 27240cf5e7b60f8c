"""Third-party identifiers (3PIDs): canonicalised here, once, at the door.

A `ThreePid` holds a canonical address by construction; nothing is folded later. Mail and
SMS go to the canonical form, so nobody binds an address that did not get the message.

Rules:
- e-mail: the local part is case-folded, the domain lower-cased (two registrable domains
  never become one). A non-ASCII local part whose NFKC form differs is refused: it only
  looks like another address. Dots and plus tags are left alone. At most 254 characters.
- msisdn: E.164 digits without "+", 1 to 15 of them.

Source: Matrix appendices, "3PID Types"; MSC2265; RFC 5321 section 4.5.3.1 for the lengths.
"""

import re
import unicodedata
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

import email_validator
import phonenumbers

from identity.errors import InvalidEmail, InvalidPhoneNumber, UnrecognizedMedium

MAX_EMAIL_CHARACTERS: Final = 254
MAX_PHONE_INPUT_CHARACTERS: Final = 40

# Domains such as example.test or localhost are real in tests and closed networks.
email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()

# Addresses that are valid and canonical beyond doubt, as most that peers send are: what the library
# would find out about them in a hundred times the time. Short labels, so the domain is short, too.
_PLAIN: Final = re.compile(
    r"[a-z0-9](?:[._+-]?[a-z0-9]){0,30}+@"
    r"(?:[a-z0-9](?:-?[a-z0-9]){0,30}+\.){1,3}+[a-z](?:-?[a-z0-9]){0,15}+",
    re.ASCII,
)
_MSISDN: Final = re.compile(r"[1-9][0-9]{0,14}", re.ASCII)
# What people write between digits. Letters, extensions and "tel:" are not among it.
_DIALLED: Final = re.compile(r"\+?[0-9 ().\-/]+", re.ASCII)
_COUNTRY: Final = re.compile(r"[A-Z]{2}", re.ASCII)

# Numbers that cost the caller, or that no person owns, cannot be proved by a message.
_REFUSED_TYPES: Final = frozenset(
    {
        phonenumbers.PhoneNumberType.PREMIUM_RATE,
        phonenumbers.PhoneNumberType.SHARED_COST,
        phonenumbers.PhoneNumberType.PAGER,
        phonenumbers.PhoneNumberType.VOICEMAIL,
    }
)


class Medium(StrEnum):
    """The kinds of 3PID that the specification names."""

    EMAIL = "email"
    MSISDN = "msisdn"

    @classmethod
    def parse(cls, text: str) -> "Medium":
        """Raises: UnrecognizedMedium; names are exact and lower-case."""
        try:
            return cls(text)
        except ValueError:
            raise UnrecognizedMedium from None


@dataclass(frozen=True, slots=True)
class ThreePid:
    """A medium and a canonical address. Made by `email`, `phone`, `msisdn` or `parse` only.

    `lowered` is set where lower-casing what was typed gives something else than folding it:
    clients hash that form, so the lookup index holds it too. It is no part of the identity.
    Neither is shown by `repr`, which ends up in logs.
    """

    medium: Medium
    address: str = field(repr=False)
    lowered: str | None = field(default=None, compare=False, repr=False)

    @classmethod
    def email(cls, text: str) -> Self:
        """An address as typed. Raises: InvalidEmail."""
        address = _canonical_email(text)
        lowered = text.lower()
        return cls(Medium.EMAIL, address, lowered if lowered != address else None)

    @classmethod
    def phone(cls, number: str, country: str) -> Self:
        """A number as dialled from `country` (ISO 3166 alpha-2, any case; "" when international).

        Raises: InvalidPhoneNumber.
        """
        return cls(Medium.MSISDN, _canonical_phone(number, country))

    @classmethod
    def msisdn(cls, digits: str) -> Self:
        """E.164 digits without "+", at most 15. Raises: InvalidPhoneNumber."""
        if not _MSISDN.fullmatch(digits):
            raise InvalidPhoneNumber
        return cls(Medium.MSISDN, digits)

    @classmethod
    def parse(cls, medium: str, address: str) -> Self:
        """A 3PID named by a caller: an e-mail address as typed, or E.164 digits.

        Raises: UnrecognizedMedium, InvalidEmail, InvalidPhoneNumber.
        """
        if Medium.parse(medium) is Medium.EMAIL:
            return cls.email(address)
        return cls.msisdn(address.removeprefix("+"))

    def shown(self) -> str:
        """As people write it: an e-mail address as it is, a phone number as `+44 7700 900001`."""
        if self.medium is Medium.EMAIL:
            return self.address
        try:
            parsed = phonenumbers.parse(f"+{self.address}")
        except phonenumbers.NumberParseException:
            return f"+{self.address}"  # 1 to 15 digits of no country
        international = phonenumbers.PhoneNumberFormat.INTERNATIONAL
        return str(phonenumbers.format_number(parsed, international))


@dataclass(frozen=True, slots=True)
class Country:
    """Where a number belongs. `calling_code` is without "+".

    `name` is ISO 3166 alpha-2, as "GB". Where the numbering plan names no country, it is the
    calling code with "+": satellite phones, and numbers that nobody has been given as yet.
    """

    calling_code: str
    name: str

    @classmethod
    def of(cls, number: ThreePid) -> Self:
        """Raises: InvalidPhoneNumber for digits that begin with no calling code."""
        try:
            parsed = phonenumbers.parse(f"+{number.address}")
        except phonenumbers.NumberParseException:
            raise InvalidPhoneNumber from None
        calling_code = str(parsed.country_code)
        return cls(calling_code, _name(phonenumbers.region_code_for_number(parsed), calling_code))

    @classmethod
    def sharing(cls, calling_code: str) -> tuple[Self, ...]:
        """All that a number with this calling code may be of. Raises: InvalidPhoneNumber."""
        known = calling_code.isascii() and calling_code.isdigit() and len(calling_code) <= 3
        regions = phonenumbers.region_codes_for_country_code(int(calling_code)) if known else ()
        if not regions:
            raise InvalidPhoneNumber("That is not a calling code")
        names = {_name(region, calling_code) for region in (*regions, None)}
        return tuple(cls(calling_code, name) for name in sorted(names))


def _name(region: str | None, calling_code: str) -> str:
    """`region`: as the library has it, where codes that no country owns are of "001"."""
    return region if region and region.isalpha() else f"+{calling_code}"


def _canonical_email(text: str) -> str:
    if isinstance(text, str) and len(text) <= MAX_EMAIL_CHARACTERS and _PLAIN.fullmatch(text):
        return text
    address = _folded_email(text)
    # Folding takes a few letters apart (ǰ, ΐ). What comes out is not what anyone types, and would
    # be refused itself, so a canonical address could not be read back.
    if address != text and _folded_email(address) != address:
        raise InvalidEmail
    return address


def _folded_email(text: str) -> str:
    if not isinstance(text, str) or not text.isprintable() or len(text) > MAX_EMAIL_CHARACTERS:
        raise InvalidEmail
    try:
        parsed = email_validator.validate_email(
            text,
            check_deliverability=False,
            globally_deliverable=False,
            allow_display_name=False,
            allow_quoted_local=False,
            allow_domain_literal=False,
            allow_empty_local=False,
        )
    except (email_validator.EmailNotValidError, UnicodeError):
        raise InvalidEmail from None
    local, _, domain = text.rpartition("@")
    # The library maps look-alike dots and widths; a domain it would change is refused instead.
    if domain.lower() not in (parsed.domain, parsed.ascii_domain):
        raise InvalidEmail
    # An encoded word (RFC 2047) would be decoded on its way into a header.
    if "=?" in local:
        raise InvalidEmail
    if not local.isascii() and unicodedata.normalize("NFKC", local) != local:
        raise InvalidEmail
    return f"{local.casefold()}@{domain.lower()}"


def _canonical_phone(number: str, country: str) -> str:
    if len(number) > MAX_PHONE_INPUT_CHARACTERS or not _DIALLED.fullmatch(number.strip(" ")):
        raise InvalidPhoneNumber
    region = country.upper()
    if not (_COUNTRY.fullmatch(region) if region else number.strip(" ").startswith("+")):
        raise InvalidPhoneNumber
    try:
        parsed = phonenumbers.parse(number, region or None)
    except phonenumbers.NumberParseException:
        raise InvalidPhoneNumber from None
    if parsed.extension or not phonenumbers.is_possible_number(parsed):
        raise InvalidPhoneNumber
    if phonenumbers.number_type(parsed) in _REFUSED_TYPES:
        raise InvalidPhoneNumber
    e164 = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)
    digits = str(e164).removeprefix("+")
    # A few countries may give out longer numbers than E.164 allows.
    if not _MSISDN.fullmatch(digits):
        raise InvalidPhoneNumber
    return digits
