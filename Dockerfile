# A node in a container; docs/operate.md says how to run it.
#
#   docker build -t souk .
#   docker build -t souk --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 .
#
# torch's package brings CUDA's libraries along, so the slim base serves a GPU as well where the host has NVIDIA's
# container toolkit. Any base with apt and Python 3.11 or newer will do. Not run on a GPU yet.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
# Pip's own settings, such as an index that has torch for the CPU alone, which is much smaller.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV DEBIAN_FRONTEND=noninteractive
# fastecdsa, which libp2p needs, is compiled against GMP. A base that has a Python of its own keeps it.
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential libgmp-dev \
 && { command -v python3 || apt-get install -y --no-install-recommends python3 python3-dev python3-venv; }
RUN python3 -m venv /opt/souk
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY configs configs
COPY protocol protocol
COPY node node
RUN /opt/souk/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt .

FROM ${BASE}
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgmp10 \
 && { command -v python3 || apt-get install -y --no-install-recommends python3; } \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --user-group --home-dir /var/lib/souk --shell /usr/sbin/nologin souk \
 && install -d -m 0700 -o souk -g souk /var/lib/souk
COPY --from=build /opt/souk /opt/souk
ENV PATH=/opt/souk/bin:$PATH \
    SOUK_HOME=/var/lib/souk \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER souk
WORKDIR /var/lib/souk
# Key, ledger, configuration and models: without a volume a new container is a new peer.
VOLUME /var/lib/souk
# Peers. The API listens on the container's own loopback and is not to be published.
EXPOSE 11501/tcp
STOPSIGNAL SIGTERM
# Ends with 1 while the node is not ready, with 4 while it is down; big models take minutes to load.
HEALTHCHECK --interval=30s --timeout=10s --start-period=10m --retries=3 CMD ["souk", "--quiet", "status"]
CMD ["souk", "serve"]
