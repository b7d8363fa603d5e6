"""Figures and tables of finished runs. Imports emaae; emaae never imports it."""
