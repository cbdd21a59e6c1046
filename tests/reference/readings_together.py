"""All file formats that retailtag reads."""

import reference_readings
import reference_readings_images
import reference_readings_models
import reference_readings_runs

FORMATS = (
    *reference_readings.FORMATS,
    *reference_readings_images.FORMATS,
    *reference_readings_models.FORMATS,
    *reference_readings_runs.FORMATS,
)
