# The project's three images: docker build --target controller|hostd|node .
# Without a registry, hack/images/build.sh makes the same images from the same programs.

ARG GO_VERSION=1.26

FROM --platform=$BUILDPLATFORM golang:${GO_VERSION}-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY cmd cmd
COPY internal internal
COPY pkg pkg
ARG TARGETOS TARGETARCH VERSION=dev
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    mkdir /out && CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -buildvcs=false -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /out/ \
      ./cmd/vmdk-csi-controller ./cmd/vmdk-hostd ./cmd/vmdk-csi-node

FROM scratch AS controller
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/vmdk-csi-controller /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/vmdk-csi-controller"]

FROM scratch AS hostd
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/vmdk-hostd /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/vmdk-hostd"]

# The node plug-in runs Debian's tools for partitions, ext4 and XFS; the list of what it calls is in hack/images/build.sh.
FROM debian:bookworm-slim AS node
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates e2fsprogs fdisk mount util-linux xfsprogs \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/vmdk-csi-node /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/vmdk-csi-node"]
