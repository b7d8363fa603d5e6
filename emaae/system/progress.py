"""Progress: a bar in a terminal or a notebook, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")

# Plain lines come this often; what is over sooner prints none.
LINE_EVERY_S = 10.0


def progress(
    items: Iterable[T],
    what: str,
    *,
    total: float | None = None,
    done: int = 0,
    unit: str = "it",
    after: str = "",
    size: Callable[[T], float] = lambda item: 1,
) -> Iterator[T]:
    """Pass items on, showing `what`, how far they have got and how long the rest will take.

    total: of the sizes of all items, in `unit`. done: what came earlier of it. after: stands behind
    the bar. The bar disappears when it is done: what is worth keeping is printed by the caller.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    # In a notebook tqdm draws a widget, in a terminal a line.
    if "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty()):
        with tqdm(
            desc=what,
            total=total,
            initial=done,
            unit=unit,
            leave=False,
            dynamic_ncols=True,
            postfix=after or None,
        ) as bar:
            for item in items:
                yield item
                bar.update(size(item))
        return
    begun = last = time.monotonic()
    far: float = done
    for item in items:
        yield item
        far += size(item)
        now = time.monotonic()
        if now - last >= LINE_EVERY_S:
            last = now
            of, left = "", ""
            if total is not None:
                seconds = (now - begun) * (total - far) / (far - done)
                of, left = f" of {total:.0f}", f", about {tqdm.format_interval(seconds)} left"
            print(f"{what}: {far:.0f}{of} {unit}, {now - begun:.0f} s{left}", flush=True)
