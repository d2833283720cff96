# The one image of gpulease. Its entry point is `gpulease`; what it runs as is its first argument: operator, gateway, …
#
#   npm run image                          builds it here, with what this machine has, and measures it
#   docker buildx build --platform linux/amd64,linux/arm64 -t NAME .
#
# The last stage runs nothing, and the programs are JavaScript without native parts: one build makes every architecture that
# the base image has, without emulation. The same SOURCE_DATE_EPOCH gives the same digest, where the builder dates files by it
# (buildah --timestamp, BuildKit's rewrite-timestamp=true).
ARG NODE_IMAGE=docker.io/library/node:24-bookworm-slim

FROM --platform=$BUILDPLATFORM $NODE_IMAGE AS build
ARG SOURCE_DATE_EPOCH=0
WORKDIR /src
COPY package.json package-lock.json .npmrc ./
# Secrets, each as may be: `ca`, certificates that a registry behind a proxy is trusted by; `npmrc`, where packages come from.
RUN --mount=type=secret,id=ca --mount=type=secret,id=npmrc \
    NODE_EXTRA_CA_CERTS=/run/secrets/ca npm_config_userconfig=/run/secrets/npmrc \
    npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
COPY LICENSE ./
COPY operator ./operator
RUN SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH node operator/sandbox/image/bundle.ts /bundle

FROM $NODE_IMAGE
LABEL org.opencontainers.image.title="gpulease" \
      org.opencontainers.image.description="Leases GPUs of other people's clusters and joins them as virtual nodes" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /bundle /app
# Nobody in particular: no name, no home. Nothing is written to disk; a caller that needs a place mounts it at /tmp.
USER 65532:65532
WORKDIR /app
# MALLOC_ARENA_MAX: the allocator keeps a heap for each thread otherwise, and what one of them frees the others do not use.
ENV NODE_ENV=production HOME=/tmp MALLOC_ARENA_MAX=2
# Small steps of the heap: less memory held for a little more time in the collector. No shell stands in between.
ENTRYPOINT ["node", "--max-semi-space-size=8", "--heap-growing-percent=20", "/app/operator/cmd/gpulease.js"]
CMD ["--help"]
