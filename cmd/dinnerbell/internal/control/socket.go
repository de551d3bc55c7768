package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// socketName is the daemon's socket in state.dir.
const socketName = "dinnerbell.sock"

// errSocketPath reports a path that does not fit into the system's address
// structure.
var errSocketPath = errors.New("path is too long for a Unix socket")

// socketPath returns the shortest form of the socket's path, absolute or from the
// working directory: the address holds 108 bytes on Linux and 104 elsewhere, the
// closing NUL included (unix(7)).
func socketPath(stateDir string) (string, error) {
	path := filepath.Join(stateDir, socketName)
	wd, err := os.Getwd()
	if err == nil {
		abs := path
		if !filepath.IsAbs(abs) {
			abs = filepath.Join(wd, path)
		}
		for _, other := range []string{abs, relativePath(wd, abs)} {
			if len(other) < len(path) {
				path = other
			}
		}
	}
	limit := len(syscall.RawSockaddrUnix{}.Path) - 1
	if len(path) > limit {
		return "", fmt.Errorf("%w: %s has %d bytes and the system allows %d; choose a shorter state.dir, or start in a folder near it",
			errSocketPath, path, len(path), limit)
	}
	return path, nil
}

func relativePath(from, to string) string {
	r, err := filepath.Rel(from, to)
	if err != nil {
		return to
	}
	return r
}

// Listen opens the socket for its owner alone. The caller holds the lock on the
// state directory, so an existing socket was left by a former daemon.
func Listen(ctx context.Context, stateDir string) (net.Listener, error) {
	path, err := socketPath(stateDir)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// On Linux the file is born with the mode of the socket, so there is no
		// moment at which somebody else could connect.
		return c.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), 0o600) })
	}}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil { // for the systems on which Fchmod of a socket has no effect
		return nil, errors.Join(fmt.Errorf("protect socket: %w", err), l.Close())
	}
	return l, nil
}
