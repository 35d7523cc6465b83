"""What a program logs: lines for a person, or a JSON object a line for whoever collects them."""

from __future__ import annotations

import datetime
import json
import logging
import sys

FORMATS = ("text", "json")
_AS_TEXT = "%(levelname)s %(name)s: %(message)s"


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time (UTC, ISO 8601), level, logger, message, error."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        said = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["error"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


def set_up(level: str, form: str) -> None:
    """Log to standard error from here on.

    Args:
        level: the lowest that is logged.
        form: one of `FORMATS`.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else logging.Formatter(_AS_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def is_json() -> bool:
    """Whether whoever reads standard error wants JSON."""
    return any(isinstance(each.formatter, JsonLines) for each in logging.getLogger().handlers)


def tell(logger: logging.Logger, text: str) -> None:
    """A line about how it goes, on standard error; among JSON as a record, at any level."""
    if not is_json():
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
        return
    record = logger.makeRecord(logger.name, logging.INFO, "", 0, text.strip(), (), None)
    for handler in logging.getLogger().handlers:
        handler.handle(record)
