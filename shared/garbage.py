"""What does a long-lived process tell Python's cyclic garbage collector once it is set up?"""

from __future__ import annotations

import gc


def spare_collections() -> None:
    """Collect once, then leave everything that is there now out of all later collections.

    Modules of torch and its like are some 200,000 objects that live as long as the process: a full collection which
    walks through them holds every thread up for a few tenths of a second, in the middle of a round.

    Called again it lets go of what has become garbage since: a session that was replaced, for example, with its models.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
