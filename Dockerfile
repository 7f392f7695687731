# ichkit in a container: docker build -t ichkit .   (CUDA; --build-arg DEVICE=cpu for a smaller image without GPU)
# Packages come from the package index (CPU: and PyTorch's index of wheels); at run time no network is needed.
FROM python:3.12-bookworm

ARG DEVICE=cuda
ARG EXTRAS=dicom,nifti,dicom-out
# Wheels of the package index are built for CUDA; those for CPU alone are in PyTorch's index.
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1

WORKDIR /opt/ichkit
COPY . .
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN case "$DEVICE" in \
      cuda) pip install --constraint constraints.txt ".[$EXTRAS]" ;; \
      cpu) grep -E '^(torch|torchvision)==' constraints.txt > /tmp/torch.txt \
           && pip install --index-url "$CPU_INDEX" --requirement /tmp/torch.txt \
           && grep -vE '^(torch|torchvision)==' constraints.txt > /tmp/others.txt \
           && pip install --constraint /tmp/others.txt ".[$EXTRAS]" ;; \
      *) echo "DEVICE: expected cuda or cpu, found $DEVICE" >&2; exit 2 ;; \
    esac \
    && ichkit --version

# No call leaves the container: weights of the hub must be in a mounted cache (HF_HOME) or not be asked for.
ENV HF_HUB_OFFLINE=1 \
    HF_HOME=/data/hub \
    NO_ALBUMENTATIONS_UPDATE=1 \
    NUMBA_CACHE_DIR=/tmp/numba \
    MPLCONFIGDIR=/tmp/matplotlib \
    ICHKIT_WORK=/data/work

RUN useradd --create-home --uid 1000 ichkit && mkdir -p /data && chown 1000 /data
USER 1000
WORKDIR /data
ENTRYPOINT ["ichkit"]
CMD ["--help"]
