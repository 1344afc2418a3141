# The service in a container, with its configuration and audit in /data:
#   docker build -t saferedir .
#   docker run -p 8000:8000 -v "$PWD/data:/data" saferedir
# A build of torch for your machine: --build-arg TORCH_INDEX=URL, the index of packages where it is (CPU only, or your CUDA).
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

ARG TORCH_INDEX=""
ARG EXTRAS="server,postgres,bench"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 HF_HOME=/data/models

WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN python -m pip install ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} -c constraints.txt ".[${EXTRAS}]" \
    && rm -rf /build/* \
    && useradd --create-home --uid 10001 saferedir \
    && install -d -o saferedir /data

USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
ENTRYPOINT ["saferedir"]
CMD ["serve", "--config", "/data/serve.toml", "--host", "0.0.0.0"]
