package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/daemon"
	"dinnerbell/internal/precondition"
	"dinnerbell/state/statedir"
)

// machine is this machine, as the daemon would meet it.
type machine struct {
	cfg     *config.Config
	running runningDaemon
	lanes   int    // 0: unknown
	brokers int    // 0: unknown
	rows    int64  // of the source table; -1: unknown
	place   string // state.dir, or the nearest folder above it that exists

	limits limits
}

type (
	check   = precondition.Check[*machine]
	finding = precondition.Finding
)

func newMachine(d *examination) *machine {
	return &machine{cfg: d.Config, running: d.running, lanes: d.kafka.Lanes, brokers: d.kafka.Brokers, rows: d.source.Rows,
		place: nearestFolder(d.Config.State.Dir), limits: systemLimits(d.running.pid)}
}

// nearestFolder returns dir, or the nearest entry above it that exists: a folder, unless
// dir is below a file.
func nearestFolder(dir string) string {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return dir
	}
	for {
		_, err := os.Stat(abs)
		missing := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
		if !missing || abs == filepath.Dir(abs) {
			return abs
		}
		abs = filepath.Dir(abs)
	}
}

// machineChecks are the checks of this machine. A file system that hangs must not hang
// the doctor: each check is given up when its time is over.
var machineChecks = givenUpInTime([]check{
	{Name: "machine.daemon", At: precondition.AtDoctor, Read: checkDaemon},
	{Name: "machine.state_dir", At: precondition.AtDoctor, Read: checkStateDir},
	{Name: "machine.file_system", At: precondition.AtDoctor, Read: checkFileSystem},
	{Name: "machine.fsync", At: precondition.AtDoctor, Read: checkFsync},
	{Name: "machine.room", At: precondition.AtDoctor, Read: checkRoom},
	{Name: "machine.open_files", At: precondition.AtDoctor, Read: checkOpenFiles},
	{Name: "machine.memory", At: precondition.AtDoctor, Read: checkMemory},
	{Name: "machine.clock", At: precondition.AtDoctor, Read: checkClock},
	{Name: "machine.http", At: precondition.AtDoctor, Read: checkHTTP},
	{Name: "machine.http_certificate", At: precondition.AtDoctor, Read: checkHTTPCertificate},
})

// givenUpInTime makes checks that return when their context ends, also where a system
// call does not.
func givenUpInTime(checks []check) []check {
	for i, c := range checks {
		read := c.Read
		checks[i].Read = func(ctx context.Context, m *machine) ([]finding, error) {
			type outcome struct {
				found []finding
				err   error
			}
			done := make(chan outcome, 1)
			go func() {
				found, err := read(ctx, m)
				done <- outcome{found, err}
			}()
			select {
			case o := <-done:
				return o.found, o.err
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	return checks
}

func newFact(format string, args ...any) []finding {
	return []finding{{Level: precondition.OK, Found: fmt.Sprintf(format, args...)}}
}

func newWarning(object, found, effect, fix string) []finding {
	return []finding{{Level: precondition.Warn, Object: object, Found: found, Effect: effect, Fix: fix}}
}

func newFailure(object, found, effect, fix string) []finding {
	return []finding{{Level: precondition.Fail, Object: object, Found: found, Effect: effect, Fix: fix}}
}

// checkDaemon shows the daemon that runs on state.dir, and refuses a folder that
// another process holds.
func checkDaemon(_ context.Context, m *machine) ([]finding, error) {
	switch {
	case m.running.answers:
		return newFact("runs, version %s, process %s; it holds state.dir, slot and port", m.running.version, m.running.pid), nil
	case m.running.pid != "":
		return newFailure("state.dir "+m.cfg.State.Dir, "process "+m.running.pid+" holds it and answers nobody on its socket", "run would refuse to start",
			"wait for it (a command such as rebuild --offline, or a daemon that starts), or stop it: kill "+m.running.pid), nil
	case m.running.err != nil:
		return nil, m.running.err
	}
	return newFact("none runs on this state.dir"), nil
}

// checkStateDir checks that the daemon can make or use the folder.
func checkStateDir(_ context.Context, m *machine) ([]finding, error) {
	dir := m.cfg.State.Dir
	object := "state.dir " + dir
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(m.place); err == nil && !info.IsDir() {
		return newFailure(object, m.place+" is not a folder", "run would end at once", replaceFileFix(m.place, info)), nil
	}
	if m.place == abs {
		switch err := statedir.Examine(dir); {
		case errors.Is(err, statedir.ErrUnsafe):
			what, fix, _ := strings.Cut(strings.TrimPrefix(err.Error(), statedir.ErrUnsafe.Error()+": "), "; run: ")
			return newFailure(object, what, "run would refuse it", fix), nil
		case err != nil:
			return newFailure(object, err.Error(), "run would refuse it", ownFolderFix(dir)), nil
		}
	}
	if err := tryFile(m.place, func(*os.File) error { return nil }); err != nil {
		return newFailure(object, "nothing can be written in "+m.place+": "+describeCause(err), "run would end at once", ownFolderFix(dir)), nil
	}
	if m.place != abs {
		return newFact("%s does not exist yet; run makes it", dir), nil
	}
	return newFact("%s, of user %d", dir, os.Geteuid()), nil
}

// replaceFileFix returns what makes room for a folder where a file is. A device or a
// socket is left where it is.
func replaceFileFix(name string, info fs.FileInfo) string {
	if info.Mode().IsRegular() {
		return "mv " + name + " " + name + ".former"
	}
	return "set state.dir to a folder, which run makes if it is missing"
}

// ownFolderFix returns the command that gives this user the folder.
func ownFolderFix(dir string) string {
	abs, err := filepath.Abs(dir)
	if err != nil {
		abs = dir
	}
	return fmt.Sprintf("install -d -m 0700 -o %d %s", os.Geteuid(), abs)
}

// describeCause returns the cause of an error of the file system without the path again.
func describeCause(err error) string {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		return path.Err.Error()
	}
	return err.Error()
}

// tryFile makes a file in a folder, uses it, and removes it.
func tryFile(dir string, use func(*os.File) error) error {
	f, err := os.CreateTemp(dir, ".dinnerbell-doctor-*")
	if err != nil {
		return err
	}
	err = use(f)
	return errors.Join(err, f.Close(), os.Remove(f.Name()))
}

// fileSystems are the types of file systems on which a state has trouble.
var fileSystems = map[string]struct{ effect, fix string }{
	"nfs":     {"locks and fsync depend on the server and the mount, and each change waits for the network", "set state.dir to a folder on a local disk"},
	"nfs4":    {"locks and fsync depend on the server and the mount, and each change waits for the network", "set state.dir to a folder on a local disk"},
	"cifs":    {"locks and fsync depend on the server and the mount, and each change waits for the network", "set state.dir to a folder on a local disk"},
	"smb3":    {"locks and fsync depend on the server and the mount, and each change waits for the network", "set state.dir to a folder on a local disk"},
	"9p":      {"it belongs to another machine, which may not keep what is synced", "set state.dir to a folder on a local disk"},
	"overlay": {"it goes with the container: each new one begins with a snapshot", "mount a volume at state.dir"},
	"tmpfs":   {"it is memory: a reboot begins with a snapshot", "set state.dir to a folder on a disk"},
	"ramfs":   {"it is memory without a limit: a reboot begins with a snapshot", "set state.dir to a folder on a disk"},
}

// checkFileSystem warns of a file system that is not a local disk.
func checkFileSystem(_ context.Context, m *machine) ([]finding, error) {
	mount, ok := daemon.FindMount(m.place)
	if !ok {
		return nil, errors.New("this system does not list its mounts")
	}
	return judgeFileSystem(mount, m.cfg.State.Dir), nil
}

func judgeFileSystem(mount daemon.Mount, dir string) []finding {
	if bad, ok := fileSystems[mount.Type]; ok {
		return newWarning("state.dir "+dir, "it is on "+mount.Type+" ("+mount.Device+", mounted on "+mount.Point+")", bad.effect, bad.fix)
	}
	return newFact("%s (%s, mounted on %s)", mount.Type, mount.Device, mount.Point)
}

// slowFsync is the time of one fsync from which on it is warned of: the mirror
// acknowledges after a sync.
const slowFsync = 200 * time.Millisecond

// checkFsync writes a file and syncs it.
func checkFsync(_ context.Context, m *machine) ([]finding, error) {
	var took time.Duration
	err := tryFile(m.place, func(f *os.File) error {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			return err
		}
		began := time.Now()
		err := f.Sync()
		took = time.Since(began)
		return err
	})
	return judgeFsync(took, err, m.cfg.State.Dir)
}

// judgeFsync judges the time and the error of one write with its fsync. What keeps every
// file from being made is the finding of machine.state_dir.
func judgeFsync(took time.Duration, err error, dir string) ([]finding, error) {
	object := "state.dir " + dir
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.ENOTDIR):
		return nil, errors.New("nothing can be written there")
	case err != nil:
		return newFailure(object, "a file cannot be written and synced: "+describeCause(err), "the daemon ends when it writes", "set state.dir to a folder on another disk"), nil
	case took > slowFsync:
		return newWarning(object, fmt.Sprintf("one fsync takes %s", took.Round(time.Millisecond)), "the slot is acknowledged late, and the server keeps more WAL", "set state.dir to a folder on a faster disk"), nil
	}
	return newFact("works, %s", took.Round(10*time.Microsecond)), nil
}
