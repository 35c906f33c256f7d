"""Brokers on demand: find a RabbitMQ, or start one that goes away with this process."""

from deploy.brokers.broker import Broker, BrokerKind
from deploy.brokers.choose import AUTO, choose_broker

__all__ = ["AUTO", "Broker", "BrokerKind", "choose_broker"]
