package testenv

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	embedded "github.com/fergusstrange/embedded-postgres"
)

// fetchVersion is the version to download if none is installed: 17 is the first
// version with failover slots and the version in docker-compose.yml.
const fetchVersion = 17

// fetchVersions are the versions that FetchPostgres can download.
var fetchVersions = map[int]embedded.PostgresVersion{
	14: embedded.V14, 15: embedded.V15, 16: embedded.V16, 17: embedded.V17, 18: embedded.V18,
}

// systemCache is root's folder for downloads if the server's user cannot enter
// the requested one.
const systemCache = "/var/cache/dinnerbell"

// FetchPostgres downloads and unpacks the programs of a major version below
// cacheDir, unless they are there, and returns their folder. If this process is
// root and the server's user cannot enter cacheDir, they go to
// /var/cache/dinnerbell.
func FetchPostgres(ctx context.Context, major int, cacheDir string) (string, error) {
	version, ok := fetchVersions[major]
	if !ok {
		return "", fmt.Errorf("fetch Postgres %d: there are %v", major, slices.Sorted(maps.Keys(fetchVersions)))
	}
	user, err := postgresUser()
	if err != nil {
		return "", err
	}
	cacheDir, err = openCache(cacheDir, user)
	if err != nil {
		return "", err
	}
	home := filepath.Join(cacheDir, fmt.Sprintf("postgres-%s-%s-%s", version, runtime.GOOS, runtime.GOARCH))
	bin := filepath.Join(home, "bin")
	if user.canRun(filepath.Join(bin, "initdb"), "--version") == nil {
		return bin, nil
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	staging, err := os.MkdirTemp(cacheDir, "fetch-")
	if err != nil {
		return "", fmt.Errorf("make folder for Postgres: %w", err)
	}
	defer func() { _ = os.RemoveAll(staging) }()
	unpacked := filepath.Join(staging, "postgres")
	if err := unpackEmbedded(version, unpacked, staging); err != nil {
		return "", fmt.Errorf("fetch Postgres %s: %w; install one (Debian: apt-get install postgresql) or set POSTGRES_BIN", version, err)
	}
	// One rename publishes the whole folder, so an interrupted download is
	// never used. A second process finds the folder of the first one.
	if err := os.Rename(unpacked, home); err != nil && user.canRun(filepath.Join(bin, "initdb"), "--version") != nil {
		return "", fmt.Errorf("put Postgres into place: %w", err)
	}
	if err := user.canRun(filepath.Join(bin, "postgres"), "--version"); err != nil {
		return "", fmt.Errorf("check the fetched Postgres: %w", err)
	}
	return bin, nil
}

// openCache makes the folder, or the system's folder if the server's user could
// not reach the first one.
func openCache(dir string, user *serverUser) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("resolve cache folder: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make cache folder: %w", err)
	}
	if user.checkReach(dir) == nil {
		return dir, nil
	}
	if err := os.MkdirAll(systemCache, 0o755); err != nil {
		return "", fmt.Errorf("make cache folder: %w", err)
	}
	return systemCache, nil
}

// unpackEmbedded lets the embedded-postgres library download, check and unpack
// its archive into home, without starting a server.
//
// The library has no function for that: Start continues with initdb, which
// refuses root. After unpacking, Start empties the data folder. A folder below
// a regular file cannot be emptied, so Start ends exactly there, with that
// error and without a process. Any other outcome means that Start did not get
// that far. TestFetchPostgres checks this against newer versions of the
// library.
func unpackEmbedded(version embedded.PostgresVersion, home, staging string) error {
	file := filepath.Join(staging, "no-folder")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return err
	}
	port, err := FreePort()
	if err != nil {
		return err
	}
	err = embedded.NewDatabase(embedded.DefaultConfig().
		Version(version).
		Port(uint32(port)).
		CachePath(filepath.Join(staging, "archive")).
		BinariesPath(home).
		RuntimePath(filepath.Join(staging, "runtime")).
		DataPath(filepath.Join(file, "data")).
		Logger(io.Discard)).Start()
	http.DefaultClient.CloseIdleConnections() // the library's connections would outlive this function
	if err == nil || !strings.HasPrefix(err.Error(), "unable to clean up data directory "+file) {
		return fmt.Errorf("unpack embedded Postgres: %w", err)
	}
	return nil
}
