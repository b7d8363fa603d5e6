"""How does someone who waits see that it goes on? A bar in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

# Plain lines come this often; what is over sooner prints none.
LINE_EVERY_S = 10.0


def progress(
    items: Iterable[T],
    what: str,
    *,
    total: int | None = None,
    done: int = 0,
    unit: str = "it",
    after: str = "",
) -> Iterator[T]:
    """Pass items on, showing `what` and how far they have got; `after` stands behind the bar.

    `done` items of the total came earlier. The bar disappears when it is done: what is worth
    keeping is printed by the caller.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    if sys.stderr is not None and sys.stderr.isatty():
        yield from tqdm(
            items,
            what,
            total,
            initial=done,
            unit=unit,
            leave=False,
            dynamic_ncols=True,
            postfix=after or None,
        )
        return
    begun = last = time.monotonic()
    for i, item in enumerate(items, done):
        yield item
        now = time.monotonic()
        if now - last >= LINE_EVERY_S:
            last = now
            of = f" of {total}" if total is not None else ""
            print(f"{what}: {i + 1}{of} {unit}, {now - begun:.0f} s", flush=True)
