"""What the server answers, as OpenAPI documents it."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ModelFacts(BaseModel):
    """Which model answered."""

    name: str = Field(description="Backbone and strategy.", examples=["demo:cnn finetune"])
    version: str = Field(
        description="First digits of the SHA-256 of all that decides tags and probabilities."
    )
    operating_point: str = Field(description="Which thresholds decide what tags are given.")


class GivenTag(BaseModel):
    """A tag at or above its threshold."""

    tag: str
    probability: float = Field(ge=0, le=1)


class ImageTags(BaseModel):
    """Tags of one image, or why it could not be read."""

    name: str | None = Field(description="File name that the form gave; null for a raw body.")
    tags: list[GivenTag] | None = Field(description="Likeliest first; null if it is unreadable.")
    error: str | None = Field(description="Why it could not be read; null if it was.")


class Answer(BaseModel):
    """Tags of the images of one request, in their order."""

    request_id: str
    model: ModelFacts
    images: list[ImageTags]


class Problem(BaseModel):
    """Why a request was refused."""

    request_id: str
    error: str = Field(description="One sentence with the remedy.")


class Status(BaseModel):
    """Whether the server lives, or takes requests."""

    status: str = Field(examples=["ok", "stopping"])
