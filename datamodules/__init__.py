"""LightningDataModules for text classification: one split protocol, one file per dataset."""

from datamodules.agnews import AGNews
from datamodules.base import TextDataModule, join_texts
from datamodules.dbpedia import DBpedia
from datamodules.docstrings import Docstrings
from datamodules.errors import DataError
from datamodules.hub import HubDataModule, HubTextDataModule
from datamodules.sst2 import SST2
from datamodules.yelp import YelpReviewFull

__all__ = [
    "SST2",
    "AGNews",
    "DBpedia",
    "DataError",
    "Docstrings",
    "HubDataModule",
    "HubTextDataModule",
    "TextDataModule",
    "YelpReviewFull",
    "join_texts",
]
