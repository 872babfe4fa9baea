# An image for head, workers and jobs of a Ray cluster, with the project installed: docker build -t orchestrator:0.1.0 .
# For nodes with a GPU: docker build --build-arg ACCELERATOR=cuda -t orchestrator:0.1.0-cuda .
# Run it with --shm-size=2g or more (Kubernetes: an emptyDir of medium Memory on /dev/shm).
ARG PYTHON=3.11.7

FROM python:${PYTHON}-slim-bookworm AS build
ARG ACCELERATOR=cpu
# Wheels of torch without CUDA are on torch's own index; those of the usual index bring CUDA's libraries.
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
RUN python -m venv /opt/orchestrator
ENV PATH=/opt/orchestrator/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
RUN case "$ACCELERATOR" in \
      cpu) pip install --constraint constraints.txt --index-url "$TORCH_CPU_INDEX" torch==2.13.0 ;; \
      cuda) pip install --constraint constraints.txt torch==2.13.0 ;; \
      *) echo "ACCELERATOR is cpu or cuda, not $ACCELERATOR" >&2; exit 1 ;; \
    esac
COPY pyproject.toml README.md LICENSE ./
COPY orchestrator ./orchestrator
COPY deployments ./deployments
COPY jobs ./jobs
RUN pip install --constraint constraints.txt .

FROM python:${PYTHON}-slim-bookworm
# g++: the execution `aoti` compiles on the node. wget: probes of KubeRay. procps: Ray's own tools look at processes.
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends g++ procps wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 --shell /bin/bash orchestrator
COPY --from=build /opt/orchestrator /opt/orchestrator
ENV PATH=/opt/orchestrator/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_worker_niceness=0 \
    TORCHAO_FORCE_SKIP_LOADING_SO_FILES=1
USER orchestrator
WORKDIR /home/orchestrator
CMD ["orchestrator", "--help"]
