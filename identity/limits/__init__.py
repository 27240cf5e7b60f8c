"""Rate limits that hold across processes, hosts and restarts.

`gcra` is the arithmetic, `catalogue` the names with their defaults, `subjects` what is counted
(an IP network instead of an IP address, for one), `models` and `store` where the state lies,
`service` what the other packages call. Which limits protect what: `docs/limits.md`.
"""
