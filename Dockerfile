# The project's three images: docker build --target vmdk-csi-controller|vmdk-csi-node|vmdk-hostd .
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

FROM scratch AS vmdk-csi-controller
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/vmdk-csi-controller /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/vmdk-csi-controller"]

FROM scratch AS vmdk-hostd
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/vmdk-hostd /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/vmdk-hostd"]

# The node plug-in runs Debian's tools for partitions, ext4, XFS and btrfs: these, their libraries and nothing else.
FROM debian:bookworm-slim AS tools
RUN apt-get update && apt-get install -y --no-install-recommends btrfs-progs e2fsprogs fdisk mount util-linux xfsprogs
COPY hack/lib/image.sh hack/images/node-programs /build/
RUN ["/bin/bash", "-euc", ". /build/image.sh; copy_programs / /out $(grep -v '^#' /build/node-programs) /usr/bin/dash; ln -s dash /out/usr/bin/sh"]

FROM scratch AS vmdk-csi-node
COPY --from=tools /out /
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/vmdk-csi-node /usr/local/bin/
ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENTRYPOINT ["/usr/local/bin/vmdk-csi-node"]
