"""Text messages: what they say, where they may go, and who carries them.

`message` composes, in the alphabet of SMS; `destination` decides by calling code; `sender` tries
the configured providers in their order, which are `twilio`, `gateway` and `outbox`. When a code
is sent, and what it is worth, is the business of others.
"""
