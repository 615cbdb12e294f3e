"""Where the rows of a night come from: settings that contradict each other, and the way out."""

from typing import TYPE_CHECKING

from requant.config.data import NightSize, RowRules

if TYPE_CHECKING:
    from requant.config import Config

TRAINING = ("train_adapter", "continue_train", "train_on_grid")
"""Stages that train on tonight's rows."""


def check_rows_fit(config: "Config") -> None:
    """Refuse rows that nobody gives, and rows that nobody takes.

    Raises:
        ValueError: Naming the fields, their values and valid ones.
    """
    _check_collected(config)
    _check_written(config)


def _check_collected(config: "Config") -> None:
    """Rows come from the ledger or from prepare_data's own source, and are divided in one place."""
    data, collects = config.prepare_data, config.collect_rows.enabled
    kind = data.source.kind
    if collects != (kind == "collected"):
        way = "kind: collected" if collects else "collect_rows.enabled=true"
        switch = f"collect_rows.enabled={str(collects).lower()}"
        raise ValueError(
            f"prepare_data.source.kind: {kind!r} with {switch}: "
            "collected rows are what a night with collect_rows trains on, and nothing else is; set "
            f"{way}"
        )
    if not collects:
        if data.replay.rows:
            raise ValueError(
                f"prepare_data.replay.rows: {data.replay.rows} with collect_rows.enabled=false: "
                "only a ledger knows what earlier nights were trained on; set it to 0 or "
                "collect_rows.enabled=true"
            )
        return
    for stage in TRAINING:
        if config.runs(stage) and getattr(config, stage).optimisation.too_long == "refuse":
            raise ValueError(
                f"{stage}.optimisation.too_long: 'refuse' with collect_rows.enabled=true: one long "
                "row would end every night that takes it; set cut or drop"
            )
    for fields, place in ((RowRules, "collect_rows"), (NightSize, "extend_ledger")):
        for name, field in fields.model_fields.items():
            given = getattr(data, name)
            if given != field.get_default():
                raise ValueError(
                    f"prepare_data.{name}: {given!r} with prepare_data.source.kind='collected': "
                    f"its rows are read and divided before; set {place}.{name}"
                )


def _check_written(config: "Config") -> None:
    """What the base writes is trained on, and nothing is written for nobody."""
    share, writes = config.prepare_data.replay.written, config.write_replay.enabled
    if share and not writes:
        raise ValueError(
            f"prepare_data.replay.written: {share} with write_replay.enabled=false: nobody writes "
            "the rows; set write_replay.enabled=true, or prepare_data.replay.written=0"
        )
    if not writes:
        return
    if not share:
        raise ValueError(
            "write_replay.enabled: true with prepare_data.replay.written=0: no night would train "
            "on what the base writes; set prepare_data.replay.written, e.g. to 0.1, or "
            "write_replay.enabled=false"
        )
    for stage in TRAINING:
        if config.runs(stage) and getattr(config, stage).optimisation.too_long == "refuse":
            raise ValueError(
                f"{stage}.optimisation.too_long: 'refuse' with write_replay.enabled=true: one long "
                "row that the base wrote would end every night that draws it; set cut or drop"
            )
