# Two images from one file:
#
#   docker build -t stenogate .                       slim: no PyTorch, under 1 GB. The last stage, so the default:
#                                                     Railway builds it, having no setting for a stage.
#   docker build -t stenogate:full --target full .    with WhisperX and PyTorch, some 8 GB; for CUDA too.
#
#   docker run --rm -p 8000:8000 -e API_KEYS=$(openssl rand -hex 32) -v stenogate:/data stenogate
#
# NOTE: no VOLUME line, Railway refuses Dockerfiles that have one. Mount a volume at /data to keep what is there.

FROM python:3.11-slim-bookworm AS build
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1
RUN pip install --no-cache-dir --disable-pip-version-check uv==0.13.8
RUN uv venv --no-python-downloads --python /usr/local/bin/python3.11 /opt/venv

FROM build AS build-slim
COPY requirements/slim.txt /requirements/slim.txt
RUN uv pip install --python /opt/venv/bin/python --require-hashes -r /requirements/slim.txt

FROM build AS build-full
COPY requirements/full.txt /requirements/full.txt
RUN uv pip install --python /opt/venv/bin/python --require-hashes -r /requirements/full.txt

FROM python:3.11-slim-bookworm AS runtime
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ffmpeg fonts-dejavu-core \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --create-home stenogate \
    && install --directory --owner=stenogate --group=stenogate /data
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=8000 \
    DATA_DIR=/data \
    HF_HOME=/data/huggingface \
    ORT_DISABLE_TELEMETRY=1
WORKDIR /app
COPY *.py ./
COPY api api
COPY access access
COPY command_line command_line
COPY downloads downloads
COPY jobs jobs
COPY transcription transcription
COPY deploy/container.py deploy/container.py
# Once, and not at each start: its user may write nothing here.
RUN python -m compileall -q .
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "/app/deploy/container.py", "--healthy"]
# Exec form: the server is process 1 and gets SIGTERM itself.
ENTRYPOINT ["python", "/app/deploy/container.py"]
CMD ["python", "main.py"]

FROM runtime AS full
COPY --from=build-full /opt/venv /opt/venv
# CTranslate2 looks for CUDA's libraries by name; these came with PyTorch.
ENV LD_LIBRARY_PATH=/opt/venv/lib/python3.11/site-packages/nvidia/cublas/lib:/opt/venv/lib/python3.11/site-packages/nvidia/cudnn/lib
USER stenogate

FROM runtime AS slim
COPY --from=build-slim /opt/venv /opt/venv
USER stenogate
