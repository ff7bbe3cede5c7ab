"""Fields that a model config leaves out: of transformers' config classes where installed, else of the table of model types."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attn_contract import ContractError
from attn_parity.model_config.model_types import ModelType
from attn_parity.versions import version


@dataclass(frozen=True)
class Filled:
    """Fields that a file leaves out.

    Args:
        fields: their values, by name.
        by: who says so.
        refusal: what transformers finds wrong with the fields that the file has; None if it takes them.
    """

    fields: Mapping[str, Any]
    by: str
    refusal: str | None = None

    def check(self) -> None:
        """Raise ContractError where transformers takes no such fields."""
        if self.refusal is not None:
            raise ContractError("config", "fields that contradict each other", f"fields that {self.by} takes: {self.refusal}")


def filled(fields: Mapping[str, Any], model_type: str, record: ModelType) -> Filled:
    """Defaults of a model's code for the fields that a config leaves out.

    transformers is given what the file says in the fields of `record`, and nothing else of the file. So it reads no file, asks
    no network and runs no code that a file names.
    """
    defaults, refusal = dict(record.defaults), None
    by = "attn-parity's table of model types"
    if (config_class := _config_class(model_type)) is not None:
        by = f"transformers {version('transformers')}"
        given = {name: value for name, value in fields.items() if name in record.fields and "." not in name}
        try:
            completed = config_class(**given).to_dict()
        except Exception as error:  # each of its checks has an error of its own
            completed, refusal = {}, textwrap.shorten(str(error.__cause__ or error), 200)
        defaults |= {name: completed[name] for name in record.fields if name in completed}
    said_already = {record.fields[name] for name in fields if name in record.fields}
    return Filled({name: value for name, value in defaults.items() if record.fields[name] not in said_already}, by, refusal)


def _config_class(model_type: str) -> Any:
    """transformers' class of a model type; None where transformers is missing or does not know the type."""
    try:
        from transformers import CONFIG_MAPPING
        from transformers.utils import logging
    except ImportError:
        return None
    logging.set_verbosity_error()
    try:
        return CONFIG_MAPPING[model_type]  # its `get` finds only classes that were imported before
    except KeyError:
        return None
