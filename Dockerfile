# One image for processors and GPUs: torch's own wheels bring CUDA where the registry has them.
# docker build -t era . && docker run --rm era era demo
# By digest (of the index of all platforms): the same tag may be another image tomorrow.
ARG BASE=python:3.11.16-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

FROM ${BASE} AS dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# A mirror of your own beside the public index; the hashes hold for it as well.
ARG PIP_EXTRA_INDEX_URL=
RUN python3 -m venv /opt/era
COPY requirements.lock requirements-cuda.lock /tmp/
# For an image without CUDA, a third of the size: the index of torch's CPU wheels. The locks have no
# hashes of these; everything else is held to its hash.
ARG TORCH_INDEX_URL=
RUN set -e; if [ -n "$TORCH_INDEX_URL" ]; then \
      /opt/era/bin/pip install --index-url "$TORCH_INDEX_URL" \
        "$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' /tmp/requirements.lock)"; \
      sed -i '/^-r /d' /tmp/requirements.lock; fi
RUN /opt/era/bin/pip install --require-hashes -r /tmp/requirements.lock

FROM dependencies AS code
COPY . /src
RUN /opt/era/bin/pip install --no-deps --prefix=/code /src

FROM ${BASE}
LABEL org.opencontainers.image.title="era" \
      org.opencontainers.image.description="ErA: error-aware deep unrolling for defocus deblurring" \
      org.opencontainers.image.licenses="Apache-2.0"
# The dependencies change seldom, the code often: two layers.
COPY --from=dependencies /opt/era /opt/era
COPY --from=code /code /opt/era
# Group 0 may write what the user may: OpenShift runs images as some user of that group.
RUN useradd --uid 1000 --gid 0 --create-home era \
    && install -d -o era -g 0 /era \
    && chmod -R g=u /home/era /era
# The code's revision, kept with each checkpoint: --build-arg REVISION=$(git describe --always --dirty)
ARG REVISION=
ARG VERSION=
LABEL org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.version=$VERSION
ENV ERA_REVISION=$REVISION \
    PATH=/opt/era/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    HOME=/home/era \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /era
CMD ["era", "--help"]
