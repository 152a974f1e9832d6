# The image of a node: chatd and chatctl on distroless, no shell. Builds with BuildKit and with the classic builder.
#
# A release names both base images by digest, so that its image can be made again from the same bytes. Read the digests with
# `docker buildx imagetools inspect IMAGE --format '{{.Manifest.Digest}}'`, put them behind the tags, and note them here:
#   rust:1.95-slim-bookworm@sha256:<digest>
#   gcr.io/distroless/cc-debian12:nonroot@sha256:<digest>
# Between releases the tags bring the fixes of the base images.

# The manifests, and sources without content in the places where Cargo looks for them: dependencies need something to be
# dependencies of. What the next stage copies from here is the same as long as the manifests are, and so is its layer of
# dependencies.
FROM rust:1.95-slim-bookworm AS manifests
COPY . /all
RUN mkdir /build && cd /all && tar -c .cargo Cargo.toml Cargo.lock patches tests/Cargo.toml src/*/Cargo.toml | tar -x -C /build \
    && cd /build \
    && for crate in src/*; do mkdir "$crate/src" && touch "$crate/src/lib.rs"; done \
    && for path in $(sed -n 's/^path = "\(.*\)"$/\1/p' tests/Cargo.toml); do \
        mkdir -p "tests/$(dirname "$path")" && touch "tests/$path"; done \
    && echo 'fn main() {}' | tee src/proto/build.rs src/chatd/src/main.rs src/chatctl/src/main.rs


FROM rust:1.95-slim-bookworm AS build
# `quick` is for tests of the image: built sooner, and slower.
ARG PROFILE=release
COPY --from=manifests /build /build
RUN cd /build && cargo build --profile "$PROFILE" --locked --bins

# All that .dockerignore lets in. Cargo goes by time stamps, and those of the sources are older than the empty ones. Cargo
# does not strip packages that a profile lists, so `strip` does. The last command says what the programs are made of, for
# a search for crates with a known fault.
COPY . /build
RUN cd /build && find proto src -type f -exec touch {} + \
    && cargo build --profile "$PROFILE" --locked --bins \
    && mkdir -p /image/root/usr/local/bin /image/root/usr/share/quorum-chat /image/user/data /image/user/secret \
    && cp "target/$PROFILE/chatd" "target/$PROFILE/chatctl" /image/root/usr/local/bin/ \
    && strip /image/root/usr/local/bin/chatd /image/root/usr/local/bin/chatctl \
    && tools/sbom > /image/root/usr/share/quorum-chat/sbom.cdx.json


FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /image/root/ /
# Empty directories that belong to the user, for the data and for the peer secret: a new volume takes that over.
COPY --from=build --chown=65532:65532 /image/user/ /

# SQLite puts what does not fit into memory next to the data: nothing else needs to be writable.
ENV CHAT_DATA_DIR=/data \
    SQLITE_TMPDIR=/data
USER 65532:65532
WORKDIR /data
VOLUME /data
# Clients, other nodes, browsers, probes and metrics.
EXPOSE 50051 50052 8080 9464
STOPSIGNAL SIGTERM
# Alive, not ready: whoever restarts what is not healthy must not restart the survivors of a lost majority. The first
# start of a new version may rewrite all of the data before it answers.
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
