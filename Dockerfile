# An image for CPUs, NVIDIA GPUs or TPUs, with everything that training and inference need:
#
#   docker build --build-arg TARGET=cpu -t unix-jax:cpu .        # or gpu, tpu
#   docker run --rm -v "$PWD:/data" unix-jax:cpu report /data/xray.png
#
# NOT TRIED: no image has been built, since the project's machines have no Docker daemon. The file is
# linted by hadolint, and tests/deploy runs its steps as shell commands in an empty directory.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
# cpu, gpu (CUDA 12; its libraries come from pip, the driver from the host) or tpu.
ARG TARGET=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt pyproject.toml setup.py MANIFEST.in README.md LICENSE NOTICE ./
COPY unix_jax unix_jax
COPY configs configs
COPY examples examples
COPY tests/golden/tiny tests/golden/tiny
RUN case "$TARGET" in \
      cpu) extras=train,data ;; \
      gpu | tpu) extras=$TARGET,train,data ;; \
      *) echo "TARGET: expected cpu, gpu or tpu, found $TARGET" >&2; exit 1 ;; \
    esac \
    && python -m venv /opt/venv \
    && /opt/venv/bin/pip install -c constraints.txt ".[$extras]"

FROM python:${PYTHON}-slim-bookworm
COPY --from=build /opt/venv /opt/venv
# For the NVIDIA container runtime; without it they have no effect.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/tmp/cache \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
ENTRYPOINT ["unix-jax"]
CMD ["--help"]
