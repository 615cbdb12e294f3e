"""Where an artifact is that a state folder does not hold: deleted here, or made elsewhere."""

import socket

from requant.store.layout import Store
from requant.store.records import all_records


def whereabouts(store: Store, digest: str) -> str:
    """Say what is known of an artifact that is not in the store, and the way out.

    Args:
        store: That should hold it.
        digest: Of the artifact.
    """
    records = [record for record in all_records(store) if record.digest == digest]
    here = f"{store.root.resolve()} on {socket.gethostname()}"
    if not records:
        return (
            f"this state folder ({here}) has no record of artifact {digest[:12]}: it was made in "
            "another one, or collected with its record. Run this where it was made, copy objects/ "
            "and actions/ from there, or make it again: `requant run` with its configuration"
        )
    maker = records[-1]
    what = f"artifact {digest[:12]} of {maker.stage}"
    host, root = maker.labels.get("host"), maker.labels.get("root")
    if host is None or root is None:
        return f"{what} was deleted here, or its record alone was copied to {here}"
    if (host, root) == (socket.gethostname(), str(store.root.resolve())):
        return f"{what} was deleted since it was made here"
    return (
        f"{what} was made in {root} on {host}; this state folder ({here}) holds its record and not "
        f"its files. Copy objects/{digest[:2]}/{digest} from there, or run the stage again"
    )
