"""De-focus backbones, models and classifiers by transformers' own contracts, known to its Auto classes.

Importing this module registers them; nothing else in the package imports transformers, which takes seconds to import.
"""

from backbones.integrations.frameworks import needed

with needed("transformers"):
    from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification

    from backbones.integrations.transformers.config import CONFIGS, DefocusConfig
    from backbones.integrations.transformers.modeling import BACKBONES, CLASSIFIERS, MODELS
    from backbones.integrations.transformers.naming import keep_names

keep_names()
for _family, _config in CONFIGS.items():
    AutoConfig.register(_config.model_type, _config)
    _registered = (
        (AutoBackbone, BACKBONES),
        (AutoModel, MODELS),
        (AutoModelForImageClassification, CLASSIFIERS),
    )
    globals()[_config.__name__] = _config
    for _auto, _kinds in _registered:
        _auto.register(_config, _kinds[_family])
        globals()[_kinds[_family].__name__] = _kinds[_family]

__all__ = ["BACKBONES", "CLASSIFIERS", "CONFIGS", "MODELS", "DefocusConfig"]
__all__ += [kind.__name__ for kinds in (CONFIGS, BACKBONES, MODELS, CLASSIFIERS) for kind in kinds.values()]
