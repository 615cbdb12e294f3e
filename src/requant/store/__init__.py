"""Content-addressed artifacts and the records of what produced them.

    objects/<dd>/<digest>/  the files + manifest.json; digest = sha256 of the canonical manifest
    actions/<key>.json      which stage key produced which digest, with figures and timings
    answers/<key>.json      where a model's answers lie, so that no night asks it twice
    attempts/<key>.json     what came of work that is not done: it runs, failed or was killed
    pins/  deployments/     what no collection may take; what serves
    work/<key>/             resumable scratch of a stage, deleted when its artifact is published
    tmp/  locks/  results/  unfinished publications, flock files, Prefect results
    access/                 the password of the servers of `requant up`, and ways to use it

Records, pins and deployments are sealed to their place: see `documents`.
Only this package builds paths below the state folder.
"""

from requant.store.content import holds, materialise, read_file
from requant.store.layout import ArtifactRef, Store
from requant.store.locks import locked
from requant.store.manifest import Manifest, ManifestEntry, describe, hash_file
from requant.store.objects import (
    check_copy,
    check_sizes,
    find_object,
    publish,
    starts_digest,
    verify,
    verify_to_serve,
)
from requant.store.records import (
    StageRecord,
    all_records,
    artifact_of,
    read_record,
    touch_record,
    verified_record,
    write_record,
)

__all__ = [
    "ArtifactRef",
    "Manifest",
    "ManifestEntry",
    "StageRecord",
    "Store",
    "all_records",
    "artifact_of",
    "check_copy",
    "check_sizes",
    "describe",
    "find_object",
    "hash_file",
    "holds",
    "locked",
    "materialise",
    "publish",
    "read_file",
    "read_record",
    "starts_digest",
    "touch_record",
    "verified_record",
    "verify",
    "verify_to_serve",
    "write_record",
]
