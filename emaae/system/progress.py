"""Output for terminals: progress (a bar; plain lines without a terminal) and aligned tables."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")

# Interval of the plain lines; a shorter task prints none.
LINE_EVERY_S = 10.0


def progress(
    items: Iterable[T],
    what: str,
    *,
    total: float | None = None,
    done: int = 0,
    unit: str = "it",
    postfix: str = "",
    size: Callable[[T], float] = lambda item: 1,
) -> Iterator[T]:
    """Yields the items, and shows the progress and the remaining time of the task `what`.

    total: sum of the sizes of all items, in `unit`, with earlier ones. done: sum of the sizes of
    items that were done earlier. postfix: text after the bar. size: of an item. The bar disappears
    at the end.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    # In a notebook tqdm draws a widget, in a terminal a line.
    drawn = "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
    begun = last = time.monotonic()
    n_done: float = done
    with tqdm(
        desc=what,
        total=total,
        initial=done,
        unit=unit,
        leave=False,
        dynamic_ncols=True,
        postfix=postfix or None,
        disable=not drawn,
    ) as bar:
        for item in items:
            yield item
            bar.update(size(item))
            n_done += size(item)
            now = time.monotonic()
            if not drawn and now - last >= LINE_EVERY_S:
                last, elapsed = now, now - begun
                text = f"{n_done:.0f} {unit}, {elapsed:.0f} s"
                if total is not None:
                    left = tqdm.format_interval(elapsed * (total - n_done) / (n_done - done))
                    text = f"{n_done:.0f} of {total:.0f} {unit}, {elapsed:.0f} s, about {left} left"
                print(f"{what}: {text}", flush=True)


def align_columns(rows: Sequence[Sequence[str]], left: int = -1) -> list[str]:
    """Rows of cells as lines; the column of index `left` is aligned left, all others right."""
    columns = []
    for i, cells in enumerate(zip(*rows)):
        align = str.ljust if i == left % len(rows[0]) else str.rjust
        columns.append([align(cell, max(map(len, cells))) for cell in cells])
    return ["  ".join(cells).rstrip() for cells in zip(*columns)]
