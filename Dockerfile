# docker build --build-arg VERSION=v1.2.3 --build-arg COMMIT=abcdef -t dinnerbell .

FROM golang:1.26-trixie AS build
WORKDIR /src
# The modules are a layer of their own: it changes with go.mod only.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
ARG COMMIT=unknown
# With cgo, as the tests are run: Pebble then uses the C zstd.
RUN go build -trimpath -buildvcs=false \
      -ldflags "-s -w -X main.version=${VERSION} -X main.commit=${COMMIT}" \
      -o /dinnerbell ./cmd/dinnerbell

# The same Debian release as the build, for its libc.
FROM debian:trixie-slim
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
RUN useradd --system --uid 10001 --home-dir /var/lib/dinnerbell --create-home dinnerbell
COPY --from=build /dinnerbell /usr/local/bin/dinnerbell
USER dinnerbell
# state.dir belongs here; a volume keeps the next start from a new snapshot.
VOLUME /var/lib/dinnerbell
EXPOSE 8420
# SIGTERM drains and exits 0.
STOPSIGNAL SIGTERM
ENTRYPOINT ["dinnerbell"]
CMD ["-c", "/etc/dinnerbell/dinnerbell.yaml", "run"]
