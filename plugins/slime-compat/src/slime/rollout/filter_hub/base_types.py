"""What dynamic filters answer."""

from slime_compat.elsewhere import attributes_of
from slime_compat.filtering import DynamicFilterOutput, MetricGatherer, call_dynamic_filter

__all__ = ["DynamicFilterOutput", "MetricGatherer", "call_dynamic_filter"]

__getattr__ = attributes_of(__name__)
