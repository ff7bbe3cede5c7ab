"""Fields that a model config leaves out: of transformers' config classes where installed, else of the table of model types."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attn_contract import ContractError
from attn_parity.model_config.model_types import ModelType
from attn_parity.versions import version


@dataclass(frozen=True)
class Filled:
    """Values of fields that a file leaves out, by name, and who says so."""

    fields: Mapping[str, Any]
    by: str


def filled(fields: Mapping[str, Any], model_type: str, record: ModelType) -> Filled:
    """What a model's code takes for the fields that a config leaves out.

    transformers is given what the file says in the fields of `record`, and nothing else of the file. So it reads no file, asks
    no network and runs no code that a file names.

    Raises:
        ContractError: transformers refuses the values.
    """
    defaults = dict(record.defaults)
    by = "attn-parity's table of model types"
    if (config_class := _config_class(model_type)) is not None:
        by = f"transformers {version('transformers')}"
        said = {name: value for name, value in fields.items() if name in record.fields and "." not in name}
        try:
            completed = config_class(**said).to_dict()
        except Exception as error:  # its checks have errors of their own
            raise ContractError("config", "fields of these values", f"ones that {by} takes: {error}") from error
        defaults |= {name: completed[name] for name in record.fields if name in completed}
    return Filled({name: value for name, value in defaults.items() if name not in fields}, by)


def _config_class(model_type: str) -> Any:
    """transformers' class of a model type; None where transformers is missing or does not know the type."""
    try:
        from transformers import CONFIG_MAPPING
        from transformers.utils import logging
    except ImportError:
        return None
    logging.set_verbosity_error()
    return CONFIG_MAPPING.get(model_type)
