# syntax=docker/dockerfile:1
# The worker's image: docker build . (CPU), or docker build --build-arg TORCH=cuda .
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
# cpu takes the small wheel from PyTorch's own index; cuda takes PyPI's, which brings CUDA along.
ARG TORCH=cpu
# GPTQModel comes as source.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY constraints.txt ./
RUN python -m venv /opt/requant
ENV PATH=/opt/requant/bin:$PATH
RUN case "$TORCH" in \
        # What it needs comes from PyPI in the next step: the constraints pin it.
        cpu) pip install --no-cache-dir --no-deps -c constraints.txt \
                 --index-url https://download.pytorch.org/whl/cpu torch ;; \
        cuda) pip install --no-cache-dir --no-deps -c constraints.txt torch ;; \
        *) echo "TORCH=$TORCH: expected cpu or cuda" >&2; exit 1 ;; \
    esac
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt ".[postgres]"

FROM python:${PYTHON}
RUN useradd --create-home --uid 1000 requant
COPY --from=build /opt/requant /opt/requant
WORKDIR /app
COPY prefect.yaml ./
COPY configs configs
COPY flows flows
COPY tasks tasks
# The artifacts, on a volume that outlives the container.
# Prefect's server keeps its leases in the home folder.
RUN mkdir .requant /home/requant/.prefect \
    && chown requant:requant .requant /home/requant/.prefect
# The linter takes the word in TOKENIZERS for a secret.
# hadolint ignore=DL3064
ENV PATH=/opt/requant/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DO_NOT_TRACK=1 \
    GOMP_SPINCOUNT=1000 \
    TOKENIZERS_PARALLELISM=false
# requant, as a number: Kubernetes asks for one to see that it is not root.
USER 1000
CMD ["prefect", "worker", "start", "--pool", "requant", "--type", "process"]
