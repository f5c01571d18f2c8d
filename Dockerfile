# nnssl_predict on a folder of scans, without root and without a network at run time; see docs/docker.md.
#
#   docker build -t nnssl-semi:cuda .                                     # the build of torch that pip takes by default
#   docker build -t nnssl-semi --build-arg TORCH_INDEX=URL_OF_CPU_BUILDS .   # an index that pytorch.org names
#   docker run --rm --init --network none --user "$(id -u):$(id -g)" \
#       -v "$PWD/models:/models:ro" -v "$PWD/scans:/in:ro" -v "$PWD/masks:/out" nnssl-semi -m MODEL

FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=""
RUN python -m venv /opt/nnssl
ENV PATH=/opt/nnssl/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY constraints.txt ./
RUN pip install -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE nnssl_commands.py ./
COPY dataset_conversion ./dataset_conversion
COPY nnssl ./nnssl
COPY nnssl_trainers ./nnssl_trainers
RUN pip install -c constraints.txt . && python -m compileall -q /opt/nnssl

FROM python:3.11-slim-bookworm
COPY --from=build /opt/nnssl /opt/nnssl
# Any user may run the image, so that nothing is written but /out and the temporary folder.
ENV PATH=/opt/nnssl/bin:$PATH \
    HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    nnUNet_raw=/tmp/nnUNet_raw nnUNet_preprocessed=/tmp/nnUNet_preprocessed nnUNet_results=/models nnUNet_compile=f
WORKDIR /tmp
USER 65534:65534
ENTRYPOINT ["nnssl_predict", "-i", "/in", "-o", "/out"]
CMD ["--help"]
