"""Files that callers upload: taken in as they come, looked at, kept, and given up."""

from gateway.uploads.direct import Announced, DirectUploads
from gateway.uploads.intake import Intake, intake_of

__all__ = ["Announced", "DirectUploads", "Intake", "intake_of"]
