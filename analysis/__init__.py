"""Figures and tables of finished runs. Imports emaae, of which only the command line imports it."""

import os
import sys

# Programs only write files; the backend that they inherit from a notebook may not be installed.
if "ipykernel" not in sys.modules and not hasattr(sys, "ps1"):
    os.environ["MPLBACKEND"] = "agg"
