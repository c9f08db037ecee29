"""What the libraries beneath say on their own account and is no news to people."""

from logging import LogRecord, getLogger


def quieten() -> None:
    """Silence progress bars of loading and warnings that upgraded pipelines cause. It imports the libraries."""
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    logging.disable_progress_bar()  # "Loading pipeline components" is no news
    transformers_logging.disable_progress_bar()
    for name in ("models.modeling_utils", "pipelines.pipeline_utils"):
        getLogger(f"diffusers.{name}").addFilter(_is_news)


def _is_news(record: LogRecord) -> bool:
    """Not what diffusers says of every upgraded pipeline, nor its warning about an empty list of modules."""
    message = record.getMessage()
    return not (message.startswith("Expected types for vae") or "should be kept in float32: []" in message)
