"""Intracranial hemorrhage on head CT: from DICOM to the leaderboard."""

from ichkit.core.caches import provide_kernel_cache

provide_kernel_cache()  # numba decides where to cache when the first kernel is defined, which is at import
