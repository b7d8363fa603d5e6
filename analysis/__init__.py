"""Figures and tables of finished runs. Imports emaae; emaae never imports it."""

import os
import sys

# Programs draw files alone, and inherit from a notebook a backend that need not be installed.
if "ipykernel" not in sys.modules and not hasattr(sys, "ps1"):
    os.environ["MPLBACKEND"] = "agg"
