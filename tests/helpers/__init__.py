"""What several test modules share."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
