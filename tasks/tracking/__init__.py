"""MLflow, and the only package that imports it: a run per night and stage, a page per model.

Edges are run inputs and outputs; each model's description is a breadcrumb of links. The client gets
its address explicitly and no fluent global is touched. Importing mlflow takes a second, so it is
imported inside functions.
"""

from tasks.tracking.connection import (
    TrackingRun,
    default_uri,
    preload,
    prepare_database,
    public,
    run_page,
)
from tasks.tracking.models import model_links
from tasks.tracking.nights import close_parent, end_orphans, nights_page, open_parent
from tasks.tracking.runs import Status, close_stage, fail_stage, log_points, open_stage

__all__ = [
    "Status",
    "TrackingRun",
    "close_parent",
    "close_stage",
    "default_uri",
    "end_orphans",
    "fail_stage",
    "log_points",
    "model_links",
    "nights_page",
    "open_parent",
    "open_stage",
    "preload",
    "prepare_database",
    "public",
    "run_page",
]
