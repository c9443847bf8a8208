"""`kshot run --dry-run`: which stages would run, and how long and how large they would be."""

from kshot.pipeline.forecast.forecast import Forecast, StageForecast, forecast_run

__all__ = ["Forecast", "StageForecast", "forecast_run"]
