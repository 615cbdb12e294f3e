"""HTML from the package's templates."""

from typing import Any


def render(template: str, **values: Any) -> str:
    """Fill one of the package's HTML templates; every value is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("requant", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
