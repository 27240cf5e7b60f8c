"""E12: a server is restored from a backup that is 1,000 statements old, and goes on.

Pass: it gets its tail back from its peers before it states again; 100 statements made then reach
all peers; no second statement is accepted under an id; all hold the same in the end.
"""

import shutil
import sys
import time

from cluster import NO_HOMESERVER, Refused, Replica, check_converged, cluster, wait_until_equal

WAIT_S = 60


def main() -> None:
    lost, after = (60, 10) if "--quick" in sys.argv else (1_000, 100)
    with cluster(3) as servers:
        sender = servers[0]
        acknowledged = [bind(sender, f"early{number}") for number in range(20)]
        wait_until_equal(servers, WAIT_S)
        backup = sender.running.folder.with_name("backup")
        sender.running.stop()
        sender.running.close()
        shutil.copytree(sender.running.folder, backup)
        sender.start()

        acknowledged += [bind(sender, f"late{number % 50}", number) for number in range(lost)]
        # Their peers know the 3PIDs as well, and go on while it is away.
        acknowledged += [bind(servers[1], f"late{number}", number) for number in range(20)]
        wait_until_equal(servers, WAIT_S)

        sender.running.close()
        shutil.rmtree(sender.running.folder)
        shutil.copytree(backup, sender.running.folder)
        sender.start()
        refused, first_after = 0, []
        began_s = time.monotonic()
        while len(first_after) < after:
            try:
                first_after.append(bind(sender, f"late{len(first_after)}", lost))
            except Refused as error:
                if error.args != (503,) or time.monotonic() - began_s > WAIT_S:
                    raise
                refused += 1
                time.sleep(0.1)
        wait_until_equal(servers, WAIT_S)
        count = check_converged(servers, acknowledged + first_after)
        last_id = sender.heads()[sender.name][0]
    print(
        f"{lost} statements came back ({refused} binds were answered 503 meanwhile), then "
        f"{after} of {after} reached both peers; {count} statements in all, 0 forks, "
        f"last id {last_id}"
    )
    assert last_id == 20 + lost + after


def bind(server: Replica, name: str, number: int = 0):
    return server.bind(f"{name}@example.org", f"@{server.name[0]}{number}:{NO_HOMESERVER}")


if __name__ == "__main__":
    main()
