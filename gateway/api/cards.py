"""Cards of generated media: how they look, and how they go."""

from urllib.parse import quote

from pydantic import BaseModel, Field

from gateway.api.context import Context
from gateway.api.views import JobErrorView, Views, shown_error
from gateway.db.cards import Card, CardMedia
from gateway.errors import NotFound
from gateway.job import JOB_TERMINAL, Job, JobStatus

MEDIA_PATH = "/api/media"
THUMBNAIL_SIDE = 512


class CardView(BaseModel):
    """Generated media under the caller's own id."""

    card_id: str = Field(description="As sent.")
    media_url: str | None = Field(
        description="Address of the picture or video, signed for 24 hours; null until completed, "
        "and again once its file was removed."
    )
    thumbnail_url: str | None = Field(
        description="The same within 512 by 512 pixels, as WebP; of a video its first picture."
    )
    media_type: CardMedia
    status: JobStatus
    job_id: str = Field(description="The job that makes it: `GET /api/jobs/{job_id}`.")
    error: JobErrorView | None = Field(description="Why it failed.")


def card_path(card_id: str) -> str:
    """Where a card is read; any text can be an id."""
    return f"{MEDIA_PATH}/{quote(card_id, safe='')}"


def card_of_job(views: Views, card: Card, job: Job) -> CardView:
    """Shape a card of whose job one knows how it is."""
    result = views.result(job)
    link = result.files[0].link if result and result.files else None
    return CardView(
        card_id=card.id,
        media_url=link,
        # a signature holds for the path, whatever else is asked
        thumbnail_url=None if link is None else f"{link}&w={THUMBNAIL_SIDE}",
        media_type=card.media_type,
        status=job.status,
        job_id=job.id,
        error=shown_error(job),
    )


async def card_view(context: Context, views: Views, card: Card) -> CardView:
    """Shape a card as it is now; raises NotFound when its job has just gone, and it with that."""
    job = await context.jobs.get(card.job_id)
    if job is None:
        raise NotFound("There is no such card here any more.")
    return card_of_job(views, card, job)


async def delete_card(context: Context, card: Card) -> None:
    """Delete a card, its job and the job's files; a job under way is cancelled first.

    Raises Conflict while the place where it ran has not heard of that.
    """
    job = await context.jobs.get(card.job_id)
    if job is not None and job.status not in JOB_TERMINAL:
        await context.jobs.cancel(job.id)
    await context.jobs.delete(card.job_id)
