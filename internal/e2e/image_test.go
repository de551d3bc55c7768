//go:build linux

package e2e

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// containerImage is what the Dockerfile says about the image, and a folder with its files.
type containerImage struct {
	t           *testing.T
	steps       string // of the RUN that fills /root-fs
	user        string // USER
	volume      string // VOLUME
	env         []string
	command     []string // ENTRYPOINT and CMD
	healthCheck []string
	root        string
}

// TestImage builds the image's files by the Dockerfile's own steps and runs them without an
// engine: as process 1 of its namespace, with the Dockerfile's user, environment and
// command, on a root file system that is read-only but for the volume.
func TestImage(t *testing.T) {
	if os.Getenv("TEST_IMAGE") == "" {
		t.Skip("make test-image builds the image's files and runs them")
	}
	if out, err := exec.CommandContext(t.Context(), "unshare", "--mount", "--pid", "--fork", "true").CombinedOutput(); err != nil {
		t.Skipf("namespaces need root and a kernel that allows them: %v %s", err, out)
	}
	i := readDockerfile(t)
	i.build()
	d := newDeployment(t)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'c' || n, 'r' FROM generate_series(1, 500) n`)
	d.setup(1)
	sent := map[string]string{}
	for round := range 2 { // a container that is started again
		init := i.start(d)
		d.awaitReady()
		i.checkSurroundings(init)
		if out, err := i.exec(init, i.healthCheck...); err != nil || len(out) > 0 {
			t.Errorf("HEALTHCHECK of a ready daemon: %v %s", err, out)
		}
		if out, err := i.exec(init, "dinnerbell", "--version"); err != nil || !bytes.HasPrefix(out, []byte("dinnerbell v1.2.3 (commit abcdef")) {
			t.Errorf("--version: %v %s", err, out)
		}
		sent[fmt.Sprint("c", round)] = "r"
		d.produce(0, newCampaign(fmt.Sprint("c", round), "r"))
		d.checkOnce(sent, patience)
		if err := syscall.Kill(init, syscall.SIGTERM); err != nil { // as STOPSIGNAL says
			t.Fatal(err)
		}
		if <-d.process.Done(); d.process.Err() != nil {
			t.Fatalf("process 1 ended with %v after SIGTERM", d.process.Err())
		}
		d.process = nil
	}
	if n := strings.Count(d.log.tail(1<<20), "taking a snapshot"); n != 1 {
		t.Errorf("%d snapshots: the volume does not keep the state", n)
	}
}

// readDockerfile reads the instructions that the test follows; others fail it.
func readDockerfile(t *testing.T) *containerImage {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(envtest.Root(t), "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	i := &containerImage{t: t, env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}} // an engine's own
	final := false
	words := func(list string) (w []string) {
		if err := json.Unmarshal([]byte(list), &w); err != nil {
			t.Fatalf("Dockerfile: %s: %v", list, err)
		}
		return w
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	for line := range strings.Lines(strings.ReplaceAll(strings.Join(lines, ""), "\\\n", " ")) {
		instruction, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch instruction {
		case "FROM":
			final = rest == "scratch"
		case "RUN":
			if strings.Contains(rest, "/root-fs") {
				i.steps = rest
			}
		case "COPY":
			if final && rest != "--from=build /root-fs /" {
				t.Fatalf("Dockerfile: this test does not know COPY %s", rest)
			}
		case "USER":
			i.user = rest
		case "VOLUME":
			i.volume = rest
		case "ENV":
			i.env = append(i.env, strings.Fields(rest)...)
		case "ENTRYPOINT", "CMD":
			i.command = append(i.command, words(rest)...)
		case "HEALTHCHECK":
			_, list, _ := strings.Cut(rest, "CMD ")
			i.healthCheck = words(list)
		}
	}
	if !final || i.steps == "" || i.user == "" || i.volume == "" || len(i.command) == 0 || len(i.healthCheck) == 0 {
		t.Fatalf("Dockerfile: not all is there: %+v", i)
	}
	return i
}

// build runs the steps of the build stage, for a folder in the place of /root-fs.
func (i *containerImage) build() {
	i.t.Helper()
	i.root = filepath.Join(envtest.Dir(i.t), "root-fs")
	cmd := exec.CommandContext(i.t.Context(), "sh", "-c", strings.ReplaceAll(i.steps, "/root-fs", i.root))
	cmd.Dir, cmd.Env = envtest.Root(i.t), append(os.Environ(), "VERSION=v1.2.3", "COMMIT=abcdef")
	if out, err := cmd.CombinedOutput(); err != nil {
		i.t.Fatalf("Dockerfile: RUN: %v\n%s", err, out)
	}
	if out, err := exec.CommandContext(i.t.Context(), "ldd", filepath.Join(i.root, i.command[0])).CombinedOutput(); err == nil {
		i.t.Errorf("the program is not static: %s", out)
	}
	authorities, err := os.ReadFile(filepath.Join(i.root, "etc/ssl/certs/ca-certificates.crt"))
	if err != nil || !x509.NewCertPool().AppendCertsFromPEM(authorities) {
		i.t.Errorf("no certificate authorities where Go looks for them: %v", err)
	}
	for _, mountpoint := range []string{"proc", "dev", "etc/dinnerbell"} { // an engine makes them
		if err := os.MkdirAll(filepath.Join(i.root, mountpoint), 0o755); err != nil {
			i.t.Fatal(err)
		}
	}
}

// runImage mounts what an engine mounts, and becomes process 1 of the container.
const runImage = `set -e
mount --make-rprivate /
mount --bind "$ROOT" "$ROOT"
mount --bind "$STATE" "$ROOT$VOLUME"
mount --bind -o ro "$CONFIG" "$ROOT/etc/dinnerbell"
mount --rbind /dev "$ROOT/dev"
mount -t proc none "$ROOT/proc"
mount -o remount,bind,ro "$ROOT"
exec "$@"`

// start runs the image with a deployment's configuration, and returns the process id of the
// container's process 1.
func (i *containerImage) start(d *deployment) int {
	i.t.Helper()
	beside := filepath.Dir(i.root)
	state, config := filepath.Join(beside, "volume"), filepath.Join(beside, "config")
	if _, err := os.Stat(state); errors.Is(err, os.ErrNotExist) { // a new volume gets owner and mode of the image's folder
		if out, err := exec.CommandContext(i.t.Context(), "cp", "-a", filepath.Join(i.root, i.volume), state).CombinedOutput(); err != nil {
			i.t.Fatalf("%v %s", err, out)
		}
	}
	text, err := os.ReadFile(d.config)
	if err = errors.Join(err, os.MkdirAll(config, 0o755), os.WriteFile(filepath.Join(config, "dinnerbell.yaml"), text, 0o644)); err != nil {
		i.t.Fatal(err)
	}
	args := append([]string{"--mount", "--pid", "--fork", "--kill-child", "sh", "-c", runImage, "sh", "env", "-i"}, i.env...)
	args = append(args, "chroot", "--userspec="+i.user, i.root)
	cmd := exec.Command("unshare", append(args, i.command...)...)
	d.env = append(os.Environ(), "ROOT="+i.root, "STATE="+state, "CONFIG="+config, "VOLUME="+i.volume)
	d.startAs(cmd)
	init := 0
	envtest.Until(i.t, patience, func() error {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", d.process.PID()))
		if err != nil {
			return err
		}
		_, err = fmt.Sscan(string(children), &init)
		return err
	})
	return init
}

// exec runs a program inside, as an engine does for HEALTHCHECK.
func (i *containerImage) exec(init int, program ...string) ([]byte, error) {
	user, group, _ := strings.Cut(i.user, ":")
	args := []string{"--target", fmt.Sprint(init), "--mount", "--pid", "--root", "--wd", "--setuid", user, "--setgid", group}
	cmd := exec.CommandContext(i.t.Context(), "nsenter", append(args, program...)...)
	cmd.Env = i.env
	return cmd.CombinedOutput()
}

// checkSurroundings fails the test unless the process is what the container says it is.
func (i *containerImage) checkSurroundings(init int) {
	i.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", init))
	if err != nil {
		i.t.Fatal(err)
	}
	user, group, _ := strings.Cut(i.user, ":")
	for _, want := range []string{"\nUid:\t" + user, "\nGid:\t" + group, fmt.Sprintf("\nNSpid:\t%d\t1\n", init), "\nCapEff:\t0000000000000000\n"} {
		if !strings.Contains(string(status), want) {
			i.t.Errorf("the process's status lacks %q:\n%s", want, status)
		}
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/root/probe", init), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		i.t.Errorf("the root file system can be written: %v", err)
	}
}
