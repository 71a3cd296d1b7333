"""How a length of time is written for people."""


def readable_duration(seconds: float) -> str:
    """Write seconds with as many digits as a person wants, such as ``45 s``, ``3 h 20 min`` or ``2 days 5 h``."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 600:
        return _two_units(minutes, 60, "h", "min")
    if hours < 48:
        return f"{hours} h"
    return _two_units(hours, 24, "days", "h")


def _two_units(count: int, per_large: int, large: str, small: str) -> str:
    many, rest = divmod(count, per_large)
    return f"{many} {large} {rest} {small}" if rest else f"{many} {large}"
