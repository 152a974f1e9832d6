# The image of a node: chatd and chatctl on distroless, no shell. Builds with BuildKit and with the classic builder.
#
# A release names both base images by digest, so that its image can be made again from the same bytes. Read the digests with
# `docker buildx imagetools inspect IMAGE --format '{{.Manifest.Digest}}'`, put them behind the tags, and note them here:
#   rust:1.95-slim-bookworm@sha256:<digest>
#   gcr.io/distroless/cc-debian12:nonroot@sha256:<digest>
# Between releases the tags bring the fixes of the base images.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
# `quick` is for tests of the image: built sooner, and slower.
ARG PROFILE=release

# The dependencies by themselves, in a layer that stays as long as Cargo.toml and Cargo.lock do. They need something to be
# dependencies of: empty sources in the places that Cargo.toml names.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src/bin tests \
    && touch src/lib.rs tests/sim.rs \
    && echo 'fn main() {}' | tee build.rs src/bin/chatd.rs src/bin/chatctl.rs \
    && cargo build --profile "$PROFILE" --config "profile.$PROFILE.strip='symbols'" --locked --bins

# All that .dockerignore lets in. Cargo goes by time stamps, and those of the sources are older than the empty ones. The
# last command says what the programs are made of, for a search for crates with a known fault.
COPY . .
RUN find build.rs proto src -type f -exec touch {} + \
    && cargo build --profile "$PROFILE" --config "profile.$PROFILE.strip='symbols'" --locked --bins \
    && mkdir -p /image/bin /image/data /image/secret /image/share \
    && cp "target/$PROFILE/chatd" "target/$PROFILE/chatctl" /image/bin/ \
    && tools/sbom > /image/share/sbom.cdx.json


FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /image/bin/ /usr/local/bin/
COPY --from=build /image/share/ /usr/share/quorum-chat/
# An empty directory that belongs to the user: a new volume takes that over.
COPY --from=build --chown=65532:65532 /image/data /data
# For a volume with the peer secret: a new one takes over its owner.
COPY --from=build --chown=65532:65532 /image/secret /secret

# SQLite puts what does not fit into memory next to the data: nothing else needs to be writable.
ENV CHAT_DATA_DIR=/data \
    SQLITE_TMPDIR=/data
USER 65532:65532
WORKDIR /data
VOLUME /data
# Clients, other nodes, browsers, probes and metrics.
EXPOSE 50051 50052 8080 9464
STOPSIGNAL SIGTERM
# Alive, not ready: whoever restarts what is not healthy must not restart the survivors of a lost majority. A start checks
# all of the data before it answers.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["/usr/local/bin/chatd", "health"]
ENTRYPOINT ["/usr/local/bin/chatd"]

# Last, as they change most often.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="quorum-chat" \
      org.opencontainers.image.description="A chat backend that does not lose a message: one node of a replicated cluster" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="gcr.io/distroless/cc-debian12:nonroot"
