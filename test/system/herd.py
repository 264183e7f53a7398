"""Thousands of requests at the same moment, from one process: for the system tests and bench/cluster. Standard library only."""
import asyncio
import resource
import time


async def one(address, port, name, path, seconds):
    """(status, ms); status 0: broken."""
    began = time.monotonic()
    writer = None
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(address, port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            head = await reader.readline()
            while await reader.read(65536):
                pass
            return int(head.split()[1]), (time.monotonic() - began) * 1000
    except (OSError, ValueError, IndexError, TimeoutError, asyncio.IncompleteReadError):
        return 0, (time.monotonic() - began) * 1000
    finally:
        if writer is not None:
            writer.close()


async def all_at_once(address, port, name, count, path, seconds):
    return await asyncio.gather(*(one(address, port, name, path, seconds) for _ in range(count)))


def herd(address, port, name, count, path="/", seconds=120):
    """What each of `count` requests at once was answered: [(status, ms)]."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 200)), hard))
    return asyncio.run(all_at_once(address, port, name, count, path, seconds))
