package testenv

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// serverUser is the user that a server runs as if this process is root, as whom
// initdb and postgres refuse to run.
type serverUser struct {
	name     string
	uid, gid uint32
}

// postgresUser returns nil if this process is not root: servers then run as the
// same user.
func postgresUser() (*serverUser, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // nil is documented as the user of this process
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("parse uid of %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("parse gid of %s: %w", name, err)
		}
		return &serverUser{name: name, uid: uint32(uid), gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("run Postgres: it refuses to run as root, and there is no user postgres or nobody; create one with: useradd --system postgres")
}

func (r *serverUser) processCredential() *syscall.Credential {
	return &syscall.Credential{Uid: r.uid, Gid: r.gid, NoSetGroups: false}
}

// giveFolder gives a whole folder to the user.
func (r *serverUser) giveFolder(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(r.uid), int(r.gid))
	})
}

// canRun returns an error unless program runs for the user (nil: for this one):
// the user may be unable to enter the folder, or a library may be missing.
func (r *serverUser) canRun(program string, args ...string) error {
	cmd := exec.Command(program, args...)
	cmd.Dir = "/"
	cmd.Env = serverEnv()
	if r != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: r.processCredential()}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w %s", program, err, out)
	}
	return nil
}

// checkReach returns an error that names the first folder above dir that the
// user cannot enter, such as a test's temporary folder or root's home.
func (r *serverUser) checkReach(dir string) error {
	if r == nil {
		return nil
	}
	for d := dir; ; d = filepath.Dir(d) {
		info, err := os.Stat(d)
		if err != nil {
			return err
		}
		if !r.mayEnter(info) {
			return fmt.Errorf("reach %s: the user %s cannot enter %s (mode %04o); choose a folder below /tmp or /var/tmp, or: chmod o+x %s",
				dir, r.name, d, info.Mode().Perm(), d)
		}
		if d == filepath.Dir(d) {
			return nil
		}
	}
}

// mayEnter applies the execute bit of the user's class.
func (r *serverUser) mayEnter(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return true
	}
	switch mode := info.Mode().Perm(); {
	case st.Uid == r.uid:
		return mode&0o100 != 0
	case st.Gid == r.gid:
		return mode&0o010 != 0
	default:
		return mode&0o001 != 0
	}
}
