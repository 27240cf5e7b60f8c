"""Every table of the main database, gathered for migrations and for the tests of them."""

from identity.accounts import models as accounts
from identity.associations import models as associations
from identity.database import metadata
from identity.invites import models as invites
from identity.keys import models as keys
from identity.lookup import models as lookup
from identity.onbind import models as onbind
from identity.replication import models as replication
from identity.sms import models as sms
from identity.terms import models as terms
from identity.validation import models as validation

__all__ = [
    "accounts",
    "associations",
    "invites",
    "keys",
    "lookup",
    "metadata",
    "onbind",
    "replication",
    "sms",
    "terms",
    "validation",
]
