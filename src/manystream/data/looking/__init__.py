"""Looking at data before training on it: contact sheets, and what is wrong with a set."""

from manystream.data.looking.check import Report, check
from manystream.data.looking.contact_sheet import contact_sheet

__all__ = ["Report", "check", "contact_sheet"]
