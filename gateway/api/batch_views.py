"""Batches as callers see them."""

from datetime import UTC, datetime

from pydantic import BaseModel, Field

from gateway.api.views import LINK_LIFETIME, JobErrorView, Views, shown_error
from gateway.job import Job, JobStatus
from gateway.jobs.batches import BatchCounts


class BatchTaken(BaseModel):
    """A batch that was taken."""

    batch_id: str
    total: int = Field(description="How many jobs it has.")
    status_url: str
    files_url: str = Field(description="Every file as one ZIP archive, signed for 24 hours.")


class JobsByStatus(BaseModel):
    """How many of a batch's jobs are in each state."""

    pending: int = 0
    processing: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    deleted: int = Field(default=0, description="Deleted one by one since.")


class BatchView(BaseModel):
    """A batch and how far it is."""

    batch_id: str
    tool: str
    total: int = Field(description="How many jobs it was made with.")
    counts: JobsByStatus
    progress: float = Field(ge=0, le=1, description="How far all of it is, 0 to 1.")
    created_at: datetime
    finished_at: datetime | None = Field(
        description="When its last job ended, however it ended; null until then."
    )
    status_url: str
    files_url: str = Field(description="Every file as one ZIP archive, signed for 24 hours.")


class BatchItem(BaseModel):
    """One job of a batch."""

    n: int = Field(description="Its place in `items` as they were sent, from 0.")
    job_id: str
    status: JobStatus
    error: JobErrorView | None
    job_url: str = Field(description="The job with its result.")
    links: list[str] = Field(description="Its files, signed for 24 hours; empty until completed.")


class BatchDetail(BatchView):
    """A batch with one page of its jobs."""

    items: list[BatchItem]
    next_cursor: str | None


class BatchList(BaseModel):
    """One page of batches, newest first."""

    items: list[BatchView]
    next_cursor: str | None


def status_url(batch_id: str) -> str:
    """Where a batch is looked at."""
    return f"/api/batches/{batch_id}"


def files_url(views: Views, batch_id: str) -> str:
    """Where its files are fetched, signed."""
    return views.signer.link(f"{status_url(batch_id)}/files.zip", LINK_LIFETIME)


def batch_view(views: Views, counted: BatchCounts) -> BatchView:
    """Shape a batch."""
    batch, by_status = counted.batch, counted.by_status
    finished = batch.finished_at
    return BatchView(
        batch_id=batch.id,
        tool=batch.tool,
        total=batch.total,
        counts=JobsByStatus.model_validate(
            {**by_status, "deleted": max(0, batch.total - sum(by_status.values()))}
        ),
        progress=counted.progress,
        created_at=batch.created_at.astimezone(UTC),
        finished_at=finished.astimezone(UTC) if finished else None,
        status_url=status_url(batch.id),
        files_url=files_url(views, batch.id),
    )


def batch_item(views: Views, job: Job) -> BatchItem:
    """Shape one job of a batch."""
    path = views.tool(job.tool).files_path
    return BatchItem(
        n=job.batch_n or 0,
        job_id=job.id,
        status=job.status,
        error=shown_error(job),
        job_url=f"/api/jobs/{job.id}",
        links=[
            views.signer.link(f"{path}/{artifact.filename}", LINK_LIFETIME)
            for artifact in job.artifacts
            if artifact.removed_at is None
        ],
    )
