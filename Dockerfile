# The image of the nodes of cluster.yaml, cluster-gcp.yaml and kubernetes/, and of any other place where this project
# runs in containers.
#
#   docker buildx imagetools inspect rayproject/ray:2.60.0-py311-cpu      # prints the digest
#   docker build -t llm-embedder:0.1.0-cpu --build-arg DIGEST=sha256:... .
#   docker build -t llm-embedder:0.1.0-gpu --build-arg DIGEST=sha256:... --build-arg DEVICE=gpu .
#
# The digest pins the base image, since a tag may name another one tomorrow; without it the build ends at once. It is an
# argument because this file was written where no registry of images could be reached.
# Holds code and no model, data, key or token: those are mounted. Runs as the user `ray` (uid 1000), and needs
# to write to /tmp, /dev/shm and ~/.cache alone.
ARG DEVICE=cpu
ARG DIGEST
# Ray's own image has what KubeRay and the cluster launcher expect (wget, rsync), and with -gpu NVIDIA's base.
FROM rayproject/ray:2.60.0-py311-${DEVICE}@${DIGEST}
ARG DEVICE

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /home/ray/llm-embedder

# torch first and in a layer of its own: it is most of the image and seldom changes. The CPU build has no CUDA.
RUN if [ "${DEVICE}" = gpu ]; \
    then python -m pip install --no-cache-dir torch==2.13.0; \
    else python -m pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu; \
    fi

COPY --chown=1000:100 pyproject.toml requirements.lock README.md LICENSE ./
COPY --chown=1000:100 embedder embedder
COPY --chown=1000:100 ray_jobs ray_jobs
COPY --chown=1000:100 serve serve
COPY --chown=1000:100 configs configs
# The versions are those of the tests; the clouds' libraries are for the head of cluster.yaml and cluster-gcp.yaml.
RUN python -m pip install --no-cache-dir --constraint requirements.lock -e ".[${DEVICE},aws,gcp]"
# Without either the LLM scores at half the speed (docs/labelling.md): Triton comes with torch, gcc with the base image.
RUN if [ "${DEVICE}" = gpu ]; then gcc --version && python -c "import triton"; fi

# Kernels that were compiled are kept where the image may write.
ENV TRITON_CACHE_DIR=/tmp/triton
# A Ray that is started in the image without a token refuses to.
ENV RAY_AUTH_MODE=token
# Ray's proxies refuse early under overload (docs/serving.md, "The door in the proxy").
ENV RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.middleware.load_shedding.middleware
USER 1000
# KubeRay gives its own command; by hand: docker run ... python -m ray_jobs.label --config /shared/run.yaml
CMD ["python", "-m", "ray_jobs.pipeline", "--help"]
