"""Messages to people and the pages that their links open.

`brands` finds and renders templates; `pages` and `email` make documents of them; `smtp` and
`outbox` send mail. Which session a message belongs to, and what its token is worth, is the
business of others: nothing here reads or writes the database.
"""
