"""FedLab's data sets import torchvision, which does not load beside a torch of another build; nothing here uses it.

To be imported before FedLab. May go when `fedlab.contrib.dataset` imports torchvision where it is used.
"""

from __future__ import annotations

import sys
from types import ModuleType

torchvision, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
torchvision.transforms = transforms
sys.modules.update({"torchvision": torchvision, "torchvision.transforms": transforms})
