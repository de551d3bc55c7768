package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// minPostgres is the oldest major version that dinnerbell supports.
const minPostgres = 14

// installPatterns are the folders of packages that do not add their programs to
// PATH: Debian, the Red Hat family, Homebrew on Apple and Intel.
var installPatterns = []string{
	"/usr/lib/postgresql/*/bin",
	"/usr/pgsql-*/bin",
	"/opt/homebrew/opt/postgresql@*/bin",
	"/opt/homebrew/bin",
	"/usr/local/opt/postgresql@*/bin",
}

// errNoPostgres means that no usable Postgres is installed.
var errNoPostgres = errors.New("no Postgres of version 14 or newer is installed")

// FindPostgres returns a folder with initdb and postgres of version 14 or
// newer. It tries $POSTGRES_BIN, PATH, and then the newest version in the
// folders of packages. If there is none, it downloads one into cacheDir, once;
// see [FetchPostgres]. The cacheDir "" is dinnerbell's folder in the user's
// cache. $POSTGRES_VERSION asks for a major version, installed or downloaded.
//
// Both variables are binding: a wrong value is an error.
func FindPostgres(ctx context.Context, cacheDir string) (binDir string, err error) {
	if dir := os.Getenv("POSTGRES_BIN"); dir != "" {
		if _, err := postgresVersion(dir); err != nil {
			return "", fmt.Errorf("use $POSTGRES_BIN: %w", err)
		}
		return dir, nil
	}
	if cacheDir == "" {
		cacheDir = userCacheDir()
	}
	if text := os.Getenv("POSTGRES_VERSION"); text != "" {
		major, err := strconv.Atoi(text)
		if err != nil {
			return "", fmt.Errorf("use $POSTGRES_VERSION: %q is not a major version such as 17", text)
		}
		return FindPostgresVersion(ctx, major, cacheDir)
	}
	return findPostgres(ctx, os.Getenv("PATH"), installPatterns, cacheDir)
}

// userCacheDir is dinnerbell's folder in the user's cache, or in the folder for
// temporary files if the user has no cache.
func userCacheDir() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	return filepath.Join(cache, "dinnerbell")
}

// FindPostgresVersion is FindPostgres for one major version; it ignores the
// environment.
func FindPostgresVersion(ctx context.Context, major int, cacheDir string) (string, error) {
	for _, pattern := range installPatterns {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return "", fmt.Errorf("look for Postgres in %s: %w", pattern, err)
		}
		for _, dir := range dirs {
			if v, err := postgresVersion(dir); err == nil && v == major {
				return dir, nil
			}
		}
	}
	return FetchPostgres(ctx, major, cacheDir)
}

// findPostgres is FindPostgres with the folders to search. Without any folder
// it behaves as if no Postgres were installed.
func findPostgres(ctx context.Context, path string, patterns []string, cacheDir string) (string, error) {
	dir, err := findInstalled(path, patterns)
	if errors.Is(err, errNoPostgres) {
		return FetchPostgres(ctx, fetchVersion, cacheDir)
	}
	return dir, err
}

// findInstalled searches path and then takes the newest version among the
// matches of patterns.
func findInstalled(path string, patterns []string) (string, error) {
	for _, dir := range filepath.SplitList(path) {
		if _, err := postgresVersion(dir); err == nil {
			// The PATH entries of Homebrew and Debian are links. Postgres finds
			// its share and lib folders from the real folder.
			if program, err := filepath.EvalSymlinks(filepath.Join(dir, "postgres")); err == nil {
				return filepath.Dir(program), nil
			}
			return dir, nil
		}
	}
	best, bestVersion := "", 0
	for _, pattern := range patterns {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return "", fmt.Errorf("look for Postgres in %s: %w", pattern, err)
		}
		for _, dir := range dirs {
			if v, err := postgresVersion(dir); err == nil && v > bestVersion {
				best, bestVersion = dir, v
			}
		}
	}
	if best == "" {
		return "", errNoPostgres
	}
	return best, nil
}

// postgresVersion returns the major version of the server in dir, or an error
// if the server is incomplete, does not run, or is too old.
func postgresVersion(dir string) (int, error) {
	if dir == "" {
		return 0, errNoPostgres
	}
	for _, name := range []string{"initdb", "postgres"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return 0, fmt.Errorf("%w: %w", errNoPostgres, err)
		}
	}
	cmd := exec.Command(filepath.Join(dir, "postgres"), "--version")
	cmd.Env = serverEnv()
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("ask %s for its version: %w", cmd.Path, err)
	}
	major, err := parseVersion(string(out))
	if err != nil {
		return 0, err
	}
	if major < minPostgres {
		return 0, fmt.Errorf("%w: %s is version %d", errNoPostgres, dir, major)
	}
	return major, nil
}

// parseVersion reads the version from texts such as "postgres (PostgreSQL)
// 15.13 (Debian 15.13-0+deb12u1)", "17devel" and "18beta1".
func parseVersion(s string) (int, error) {
	_, rest, _ := strings.Cut(s, ") ")
	end := slices.IndexFunc([]byte(rest), func(c byte) bool { return c < '0' || c > '9' })
	if end < 0 {
		end = len(rest)
	}
	major, err := strconv.Atoi(rest[:end])
	if err != nil {
		return 0, fmt.Errorf("read Postgres version %q: no number", strings.TrimSpace(s))
	}
	return major, nil
}
