# docker build --build-arg VERSION=v1.2.3 --build-arg COMMIT=abcdef -t dinnerbell .
#
# The image holds one static program, certificate authorities, the licences of what is
# linked, and a user without rights. Its root file system may be read-only: only state.dir is written.

FROM golang:1.26-trixie AS build
WORKDIR /src
# The modules are a layer of their own: it changes with go.mod only.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
ARG COMMIT=unknown
# Without the demo, whose broker and Postgres have no place in production.
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags nodemo \
      -ldflags "-s -w -X main.version=${VERSION} -X main.commit=${COMMIT}" \
      -o /root-fs/usr/bin/dinnerbell ./cmd/dinnerbell \
 && scripts/licenses.sh /root-fs/usr/share/doc/dinnerbell/licenses \
 && cp LICENSE /root-fs/usr/share/doc/dinnerbell/ \
 && mkdir -p /root-fs/etc/ssl/certs /root-fs/var/lib/dinnerbell /root-fs/tmp \
 && cp /etc/ssl/certs/ca-certificates.crt /root-fs/etc/ssl/certs/ \
 && echo 'dinnerbell:x:10001:10001::/var/lib/dinnerbell:/sbin/nologin' > /root-fs/etc/passwd \
 && echo 'dinnerbell:x:10001:' > /root-fs/etc/group \
 && chmod 700 /root-fs/var/lib/dinnerbell && chmod 1777 /root-fs/tmp \
 && chown -R 10001:10001 /root-fs/var/lib/dinnerbell

FROM scratch
COPY --from=build /root-fs /
USER 10001:10001
WORKDIR /var/lib/dinnerbell
# A volume keeps the next start from a new snapshot.
VOLUME /var/lib/dinnerbell
ENV DINNERBELL_CONFIG=/etc/dinnerbell/dinnerbell.yaml DINNERBELL_STATE_DIR=/var/lib/dinnerbell/state
EXPOSE 8420
# SIGTERM drains and exits 0.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --retries=3 --start-period=60s CMD ["dinnerbell", "health"]
ENTRYPOINT ["/usr/bin/dinnerbell"]
CMD ["run"]
