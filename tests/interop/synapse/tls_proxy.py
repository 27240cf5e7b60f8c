"""The reverse proxy in front of the identity server: it ends TLS, and passes bytes on as they are.

with TlsProxy(context) as proxy:
    ... make a server whose public URL is https://localhost:<proxy.port> ...
    proxy.upstream_port = server.port
"""

import asyncio
import ssl
import threading
from typing import Self


class TlsProxy:
    """On loopback, in a thread. While nobody listens upstream, connections are closed."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.upstream_port = 0
        self._context = context
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        listener = await asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=self._context)
        self.port: int = listener.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopping.wait()
        # What is still connected ends with the loop.
        listener.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        except OSError:
            writer.close()
            return
        # TLS knows no connection that is closed on one side only, so both end together.
        directions = [
            asyncio.create_task(_pass_on(reader, upstream[1])),
            asyncio.create_task(_pass_on(upstream[0], writer)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            upstream[1].close()
            writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(64 * 1024):
            writer.write(data)
            await writer.drain()
    except OSError:
        # One side hung up; the other is told by being closed.
        return
