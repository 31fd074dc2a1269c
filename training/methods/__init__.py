"""Training methods, one file each; the table in docs/methods.md has a card for every one."""

from __future__ import annotations

from collections.abc import Mapping

from distill_rt.training.methods.base import Method, Phase
from distill_rt.training.methods.bespoke import BespokeSolver
from distill_rt.training.methods.bk_sdm import BlockRemoval
from distill_rt.training.methods.boot import Boot
from distill_rt.training.methods.catch_up import CatchUp
from distill_rt.training.methods.consistency import Consistency
from distill_rt.training.methods.consistency_training import ConsistencyTraining
from distill_rt.training.methods.ctm import ConsistencyTrajectory
from distill_rt.training.methods.denoising import Denoising
from distill_rt.training.methods.dice import ConditionSharpening
from distill_rt.training.methods.dmd import DistributionMatching
from distill_rt.training.methods.dmd2 import ImprovedDistributionMatching
from distill_rt.training.methods.ect import EasyConsistencyTuning
from distill_rt.training.methods.feature_kd import FeatureKD
from distill_rt.training.methods.gits import ScheduleSearch
from distill_rt.training.methods.guidance import GuidanceDistillation
from distill_rt.training.methods.imm import InductiveMomentMatching
from distill_rt.training.methods.kd import KnowledgeDistillation
from distill_rt.training.methods.ladd import LatentAdversarial
from distill_rt.training.methods.lcm import LatentConsistency
from distill_rt.training.methods.meanflow import MeanFlow
from distill_rt.training.methods.pcm import PhasedConsistency
from distill_rt.training.methods.progressive import Progressive
from distill_rt.training.methods.rcfd import ClassifierFeatures
from distill_rt.training.methods.rcm import RegularizedConsistency
from distill_rt.training.methods.rectified_flow import RectifiedFlow
from distill_rt.training.methods.scm import SimplifiedConsistency
from distill_rt.training.methods.sfd import SimpleFastDistillation
from distill_rt.training.methods.shortcut import Shortcut
from distill_rt.training.methods.sid import ScoreIdentity
from distill_rt.training.methods.tcd import TrajectoryConsistency
from distill_rt.training.methods.tdm import TrajectoryDistributionMatching
from distill_rt.training.methods.tract import Tract
from distill_rt.training.methods.vsd import VariationalScore

METHODS: Mapping[str, type[Method]] = {
    method.name: method
    for method in (
        KnowledgeDistillation,
        Progressive,
        ClassifierFeatures,
        Tract,
        SimpleFastDistillation,
        RectifiedFlow,
        Boot,
        Consistency,
        LatentConsistency,
        PhasedConsistency,
        TrajectoryConsistency,
        ConsistencyTraining,
        EasyConsistencyTuning,
        ConsistencyTrajectory,
        Shortcut,
        CatchUp,
        InductiveMomentMatching,
        MeanFlow,
        SimplifiedConsistency,
        RegularizedConsistency,
        DistributionMatching,
        ImprovedDistributionMatching,
        VariationalScore,
        ScoreIdentity,
        TrajectoryDistributionMatching,
        LatentAdversarial,
        GuidanceDistillation,
        ConditionSharpening,
        ScheduleSearch,
        BespokeSolver,
        FeatureKD,
        BlockRemoval,
    )
}
"""What ``distill-rt distill METHOD`` offers."""

__all__ = [
    "Method",
    "Phase",
    "METHODS",
    "BespokeSolver",
    "BlockRemoval",
    "ClassifierFeatures",
    "CatchUp",
    "ConditionSharpening",
    "Consistency",
    "ConsistencyTraining",
    "Denoising",
    "EasyConsistencyTuning",
    "FeatureKD",
    "GuidanceDistillation",
    "KnowledgeDistillation",
    "Progressive",
    "RectifiedFlow",
    "RegularizedConsistency",
    "Tract",
    "VariationalScore",
    "TrajectoryConsistency",
    "ScheduleSearch",
    "TrajectoryDistributionMatching",
    "ScoreIdentity",
    "Shortcut",
    "SimpleFastDistillation",
    "SimplifiedConsistency",
    "PhasedConsistency",
    "LatentConsistency",
    "MeanFlow",
    "LatentAdversarial",
    "InductiveMomentMatching",
    "ImprovedDistributionMatching",
    "DistributionMatching",
    "ConsistencyTrajectory",
    "Boot",
]
