# Four images, one file: docker build --target gateway|gpu|worker|store .
# `worker` is the last one because RunPod's hub builds a file to its end. docs/deploy.md says what
# each is for, and what of this has been tried.

FROM python:3.12.12-slim-bookworm AS python
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# What is written lies in /workspace, as on a pod, and a volume takes over the folder's owner.
RUN useradd --uid 1000 --create-home genmedia \
    && install -d -o genmedia -g genmedia /workspace /workspace/models
WORKDIR /app


# --- the environment of the gateway and the GPU service; the same lock file as startup.sh
FROM python AS packages
COPY requirements/run.txt /tmp/run.txt
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --require-hashes -r /tmp/run.txt


# --- gateway: also the simulator, and a GPU service beside it
FROM python AS gateway
COPY --from=packages /opt/venv /opt/venv
COPY LICENSE ./
COPY deploy deploy
COPY migrations migrations
COPY workflows workflows
COPY gpu_server gpu_server
COPY gateway gateway
RUN python -m compileall -q gateway gpu_server
ENV PATH=/opt/venv/bin:$PATH WORKSPACE=/workspace BACKEND_HOST=0.0.0.0 BACKEND_PORT=8000
USER 1000:1000
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
    CMD ["python", "deploy/answers.py", "BACKEND_PORT", "/readyz"]
CMD ["deploy/gateway.sh"]


# --- store: an S3 server over a folder, for an installation without a bucket
FROM rclone/rclone:1.75.0 AS store
# A bucket is a folder here; the owner goes with it into a fresh volume.
RUN mkdir -p /store/genmedia && chown -R 1000:1000 /store
USER 1000:1000
EXPOSE 9000
HEALTHCHECK --interval=15s --timeout=5s --start-period=15s --retries=4 \
    CMD ["nc", "-z", "127.0.0.1", "9000"]
# As the tests run it. The keys come by RCLONE_AUTH_KEY: without it everybody may do everything.
CMD ["serve", "s3", "--config", "", "--addr", ":9000", "--vfs-cache-mode", "off", "--dir-cache-time", "1h", "/store"]


# --- ComfyUI: the commit that the workflows were checked against, in an environment of its own
FROM python AS comfyui-source
# hadolint ignore=DL3008 # Debian keeps one version of a package: a pinned one is gone with the next
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates git \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/comfyui
RUN git init -q \
    && git fetch -q --depth 1 https://github.com/Comfy-Org/ComfyUI.git 783545f689a0af730065994b46b382ae24844c99 \
    && git checkout -q FETCH_HEAD && rm -rf .git

FROM python AS comfyui
# Triton compiles kernels when they are first used.
# hadolint ignore=DL3008 # as above
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY requirements/comfyui.txt /tmp/comfyui.txt
RUN python -m venv /opt/comfyui-venv \
    && /opt/comfyui-venv/bin/pip install --require-hashes -r /tmp/comfyui.txt
COPY --from=comfyui-source /opt/comfyui /opt/comfyui
# PyTorch brings CUDA; the driver's libraries are put in by NVIDIA's container runtime.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    COMFYUI_CODE=/opt/comfyui COMFYUI_PYTHON=/opt/comfyui-venv/bin/python \
    COMFYUI_PATH=/workspace/ComfyUI COMFYUI_API_URL=http://127.0.0.1:8188 \
    MODELS_PATH=/workspace/models WORKSPACE=/workspace


# --- gpu: ComfyUI and the GPU service beside it
FROM comfyui AS gpu
COPY --from=packages /opt/venv /opt/venv
COPY LICENSE ./
COPY deploy deploy
COPY workflows workflows
COPY gpu_server gpu_server
RUN python -m compileall -q gpu_server
ENV PATH=/opt/venv/bin:$PATH GPU_SERVER_HOST=0.0.0.0 GPU_SERVER_PORT=8001
USER 1000:1000
EXPOSE 8001
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=4 \
    CMD ["python", "deploy/answers.py", "GPU_SERVER_PORT", "/health"]
ENTRYPOINT ["deploy/beside_comfyui.sh"]
CMD ["python", "-m", "gpu_server"]


# --- worker: ComfyUI and the worker of RunPod serverless beside it
FROM python AS worker-packages
COPY requirements/serverless.txt /tmp/serverless.txt
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --require-hashes -r /tmp/serverless.txt

FROM comfyui AS worker
COPY --from=worker-packages /opt/venv /opt/venv
COPY LICENSE ./
COPY deploy deploy
COPY workflows workflows
COPY gpu_server gpu_server
RUN python -m compileall -q gpu_server
# Where RunPod mounts a network volume.
ENV PATH=/opt/venv/bin:$PATH MODELS_PATH=/runpod-volume/models
USER 1000:1000
HEALTHCHECK --interval=15s --timeout=5s --start-period=300s --retries=4 \
    CMD ["python", "deploy/answers.py", "COMFYUI_API_URL", "/queue"]
ENTRYPOINT ["deploy/beside_comfyui.sh"]
CMD ["python", "-m", "gpu_server.runpod_handler"]
