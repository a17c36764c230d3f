# syntax=docker/dockerfile:1
#
#   docker build --build-arg VARIANT=cpu --tag quantformer:cpu .
#   docker build --build-arg VARIANT=gpu --tag quantformer:gpu .
#
# The gpu image brings CUDA and cuDNN as Python packages; the host brings its driver and the NVIDIA container toolkit.
# deploy/rehearse.py performs these steps, read from this file, in a bare virtual environment.

ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS builder
ARG VARIANT=cpu
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY deploy/install.sh deploy/constraints-gpu.txt deploy/
COPY model model
COPY training training
COPY service service
COPY clients clients
RUN deploy/install.sh ${VARIANT} /opt/quantformer

FROM python:${PYTHON}-slim
COPY --from=builder /opt/quantformer /opt/quantformer
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin quantformer
USER 10001
# A quantformer.toml mounted here is read.
WORKDIR /etc/quantformer
# Inside a container, loopback is nobody's: every address, and publish the ports on the host's loopback.
ENV PATH=/opt/quantformer/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    QUANTFORMER_BUNDLE=/bundle \
    QUANTFORMER_HOST=0.0.0.0 \
    QUANTFORMER_LOG=json
EXPOSE 7410 7411 7412 7413
# Ready, not merely alive: the engine has warmed up and answers.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD quantformer status --host 127.0.0.1 || exit 1
STOPSIGNAL SIGTERM
ENTRYPOINT ["quantformer"]
CMD ["serve"]
