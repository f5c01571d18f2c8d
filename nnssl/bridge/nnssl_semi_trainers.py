"""The one module of the folder that `nnUNet_extTrainer` names: it makes the trainers visible to nnU-Net's commands.

The classes live in `nnssl_trainers`, outside of that folder, so that they stay picklable and keep their identity.
"""

import logging

from nnssl.registry import METHODS

logging.basicConfig(level=logging.INFO, format="%(message)s")
globals().update({name: method.load() for name, method in METHODS.items()})
