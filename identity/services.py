"""Everything put together from one configuration: the only place that knows all parts."""

from dataclasses import dataclass
from urllib.parse import quote

from identity.accounts.service import Accounts
from identity.associations.service import Associations
from identity.clock import Clock
from identity.config import Config
from identity.database import Database, sqlite_path
from identity.federation.homeserver import HomeserverClient
from identity.federation.keys import HomeserverKeys
from identity.federation.requests import SignedRequests
from identity.federation.resolver import Resolver, SystemResolver
from identity.invites.service import Invites
from identity.keys.service import SigningKeys
from identity.limits.catalogue import with_overrides
from identity.limits.lookup_budget import LookupBudget
from identity.limits.service import Limiter
from identity.limits.store import RedisStorage, SqlStorage, Storage
from identity.lookup.service import Lookups, Peppers
from identity.messaging.brands import Brands
from identity.messaging.channel import Channel, EmailChannel
from identity.messaging.email import Composer
from identity.messaging.sender import Sender, sender_from_config
from identity.onbind.service import Notifications
from identity.replication.peers import Peers
from identity.replication.receiving import Receiver
from identity.sms.channel import SmsChannel
from identity.sms.defence import Defence
from identity.sms.sender import TextSender
from identity.sms.sender import sender_from_config as sms_sender_from_config
from identity.terms.policy import Policies
from identity.terms.service import Terms
from identity.threepid import Medium
from identity.validation.service import Validation


@dataclass(frozen=True, slots=True)
class Services:
    """One of each, for one process."""

    config: Config
    clock: Clock
    database: Database
    signing_keys: SigningKeys
    associations: Associations
    signed_requests: SignedRequests
    accounts: Accounts
    terms: Terms
    validation: Validation
    invites: Invites
    notifications: Notifications
    peers: Peers
    receiver: Receiver
    lookups: Lookups
    peppers: Peppers
    limit_storage: Storage
    limiter: Limiter
    sms_defence: Defence
    lookup_budget: LookupBudget
    brands: Brands

    def close(self) -> None:
        """Let go of every connection."""
        self.limit_storage.close()
        self.database.close()


def assemble(
    config: Config,
    database: Database,
    clock: Clock,
    *,
    threads: int | None = None,
    resolver: Resolver | None = None,
    sender: Sender | None = None,
    text_sender: TextSender | None = None,
) -> Services:
    """`threads`: of this process, if not those of a web process. `resolver`, `sender` and
    `text_sender`: others than the configured ones, for tests.

    Raises: SetupError for files that the configuration names and that cannot be used.
    """
    server_name = str(config.server.name)
    limit_storage = _limit_storage(config, database)
    limiter = Limiter(
        with_overrides(config.rate_limits.limits),
        limit_storage,
        clock,
        database.keys,
        enabled=config.rate_limits.enabled,
    )
    homeservers = HomeserverClient(
        config.federation, threads or config.server.threads, clock, resolver or SystemResolver()
    )
    signing_keys = SigningKeys(database, config.signing_keys_path, clock)
    associations = Associations(database, signing_keys, server_name, clock)
    brands = Brands(config.email.templates, config.email.default_brand)
    composer = Composer(brands, config, clock)
    sender = sender or sender_from_config(config, clock)
    channels: dict[Medium, Channel] = {
        Medium.EMAIL: EmailChannel(sender, composer, limiter, config)
    }
    defence = Defence(database, limiter, config, clock)
    configured = sms_sender_from_config(config, clock)
    if configured is not None:
        texts = text_sender or configured
        channels[Medium.MSISDN] = SmsChannel(texts, defence, brands, limiter, config)
    lookup_budget = LookupBudget(limiter)
    return Services(
        config=config,
        clock=clock,
        database=database,
        signing_keys=signing_keys,
        associations=associations,
        signed_requests=SignedRequests(HomeserverKeys(homeservers, clock)),
        accounts=Accounts(
            database, homeservers, limiter, clock, config.federation.allowed_homeservers
        ),
        terms=Terms(database, Policies.load(config.terms.file), clock),
        validation=Validation(database, associations, limiter, channels, config, clock),
        invites=Invites(database, signing_keys, limiter, lookup_budget, channels, config, clock),
        notifications=Notifications(database, signing_keys, homeservers, server_name, clock),
        peers=Peers(database, server_name, clock),
        receiver=Receiver(database, associations, clock),
        lookups=Lookups(database, clock, config.lookup.algorithms, config.lookup.max_addresses),
        peppers=Peppers(database, clock, config.lookup.pepper_grace),
        limit_storage=limit_storage,
        limiter=limiter,
        sms_defence=defence,
        lookup_budget=lookup_budget,
        brands=brands,
    )


def _limit_storage(config: Config, database: Database) -> Storage:
    if redis_url := config.rate_limits.storage.get_secret_value():
        return RedisStorage(redis_url)
    path = sqlite_path(config.database_url)
    if path is None:
        return SqlStorage(database)
    # Counting need not be as durable as binding, and must not wait for its writer.
    storage = SqlStorage(
        Database(
            f"sqlite:///{quote(str(path.with_name('limits.db')))}",
            database.keys,
            pool_size=config.database.pool_size,
            synchronous="NORMAL",
        )
    )
    storage.create_table()
    return storage
