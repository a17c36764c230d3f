"""The networks that QuantFormer is compared with: those of the paper's tables, and newer ones.

Every one gets the same rows, told by the same context, and is trained by `quantformer_training.competitors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from quantformer_training.networks.autoformer import autoformer
from quantformer_training.networks.brainlm import brainlm
from quantformer_training.networks.brainlm_checkpoint import finetuned_brainlm
from quantformer_training.networks.crossformer import crossformer
from quantformer_training.networks.informer import informer
from quantformer_training.networks.itransformer import itransformer
from quantformer_training.networks.lstm import lstm
from quantformer_training.networks.network import CompetitorNetwork, NetworkConfig, NetworkSpec, TaskNetwork
from quantformer_training.networks.patchtst import patchtst
from quantformer_training.networks.tsmixer import tsmixer

__all__ = ["NETWORKS", "CompetitorNetwork", "NetworkConfig", "NetworkSpec", "TaskNetwork", "finetuned_brainlm"]

_LIBRARY = "neuralforecast 3.3"

#: By the name that commands and tables of runs use. The published BrainLM needs the user's files: `finetuned_brainlm`.
NETWORKS: Mapping[str, NetworkSpec] = MappingProxyType(
    {
        "lstm": NetworkSpec(title="LSTM", source="torch", make=lstm),
        "autoformer": NetworkSpec(title="Autoformer", source=_LIBRARY, make=autoformer),
        "informer": NetworkSpec(title="Informer", source=_LIBRARY, make=informer),
        "crossformer": NetworkSpec(title="Crossformer", source="own", make=crossformer, multivariate=True),
        "brainlm": NetworkSpec(title="BrainLM-style", source="own", make=brainlm),
        "patchtst": NetworkSpec(title="PatchTST", source=_LIBRARY, make=patchtst),
        "itransformer": NetworkSpec(title="iTransformer", source=_LIBRARY, make=itransformer, multivariate=True),
        "tsmixer": NetworkSpec(title="TSMixer", source=_LIBRARY, make=tsmixer, multivariate=True),
    }
)
