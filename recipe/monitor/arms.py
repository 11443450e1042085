"""Which arms a run has, and what they are."""

from omegaconf import DictConfig

from recipe import arms

BASELINE = "baseline"


def arm_of(config: DictConfig) -> str:
    """Return a run's arm, "a+b" for several together, and "baseline" for none; ValueError if an arm's file is gone."""
    if missing := arms.missing_arms(config):
        raise ValueError(f"recipe/config/arms/{missing[0]}.yaml, its arm's file, is gone")
    return "+".join(arms.arms(config)) or BASELINE


def titles(arm: str) -> list[str]:
    """Return the title of each arm of a run's: "Name: what it is (source)."."""
    return [arms.title(name) for name in arm.split("+")]
