"""What a client trains and keeps, and what the server makes of the aggregate."""

from partwise.algorithms.averaging import FedAvg, FedProx
from partwise.algorithms.submodel import FedSubAvg

__all__ = ["FedAvg", "FedProx", "FedSubAvg"]
