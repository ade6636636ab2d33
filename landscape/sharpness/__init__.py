"""Sharpness of a minimum: how far the loss rises in a neighbourhood."""

from landscape.sharpness.average_case import AverageSharpnessResult, MSharpnessResult, average_sharpness, m_sharpness
from landscape.sharpness.balls import Ball, ball_around
from landscape.sharpness.result import OwnWorstCases, SharpnessResult
from landscape.sharpness.trust_region import QuadraticGap, TrustRegionResult, quadratic_gap, trust_region_maximum
from landscape.sharpness.worst_case import join_curve, sharpness_curve, worst_case_sharpness

__all__ = [
    "AverageSharpnessResult",
    "Ball",
    "MSharpnessResult",
    "OwnWorstCases",
    "QuadraticGap",
    "SharpnessResult",
    "TrustRegionResult",
    "average_sharpness",
    "ball_around",
    "join_curve",
    "m_sharpness",
    "quadratic_gap",
    "sharpness_curve",
    "trust_region_maximum",
    "worst_case_sharpness",
]
