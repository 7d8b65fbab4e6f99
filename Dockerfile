# The service as an image, for any platform that the base has: `make image`, `make deploy` (docs/operations.md).
#
# BASE is an official slim Python, by the digest of its index, which has amd64 and arm64 among others:
# https://github.com/docker-library/repo-info/blob/422f3cfe488dc9ae394c5058b27db617f72c91db/repos/python/remote/3.13.15-slim.md
ARG BASE=python:3.13.15-slim@sha256:881d80734ee05dca6f7f42dcb080975652a53c7eda9ba1f03bb8da31aa6a6ec2

FROM ${BASE} AS build
# Wheels only: nothing is compiled, so nothing to compile with is needed. A machine whose packages come from
# elsewhere than PyPI hands in its pip.conf as the secret `pip`, which stays out of every layer.
COPY requirements/service.txt agents/requirements.txt /build/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -m venv --without-pip /opt/headrace && \
    python -m pip --python /opt/headrace install --quiet --no-cache-dir --no-compile --disable-pip-version-check \
        --root-user-action=ignore --only-binary :all: --require-hashes \
        -r /build/service.txt -r /build/requirements.txt
WORKDIR /app
COPY headrace.toml ./
COPY service service
COPY agents agents
# Nobody can write bytecode later, and the base has none of the standard library: without it each start, and each
# health check, would compile. Hashes instead of times, unchecked, make it the same bytes in every build. Whatever the
# checkout's umask was, all may read.
RUN python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/headrace /app && \
    chmod -R u=rwX,go=rX /opt/headrace /app

FROM ${BASE}
# What installs or builds stays outside: pip is the base's one tool of that kind.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/ensurepip /usr/local/lib/python3*/site-packages/* && \
    python -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        -x '/(idlelib|lib2to3|tkinter|turtledemo)/' /usr/local/lib/python3*
COPY --from=build /opt/headrace /opt/headrace
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/opt/headrace/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HEADRACE_HOST=0.0.0.0 \
    HEADRACE_PORT=8080 \
    HEADRACE_CATALOG=/app/headrace.toml
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# The same as in infra/workload.py, which ECS looks at instead.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/ping', timeout=4).read()"]
CMD ["python", "-m", "service"]
ARG BASE
ARG REVISION=
LABEL org.opencontainers.image.title="Headrace" \
      org.opencontainers.image.description="A streaming gateway for AI agents on Amazon Bedrock" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"
