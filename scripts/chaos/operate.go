package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"dinnerbell/scripts/chaos/history"
	"dinnerbell/scripts/chaos/oracle"
)

// operateLimit bounds an operator's command.
const operateLimit = 15 * time.Second

// runCommand runs an operator's command against a daemon during the faults. The
// command may fail, which must have no effect; it must never report or leave a
// wrong state.
func (in *faultInjector) runCommand(ctx context.Context, f *history.Fault, d *daemonProcess) error {
	args := map[string][]string{
		faultRebuild: {"rebuild"}, faultVerify: {"verify", "--repair", "--json"}, faultCheckpoint: {"checkpoint", "create"},
		faultReplay:  {"replay", "--from", []string{"earliest", "2s", "5s"}[f.Draw%3]},
		faultResolve: {"resolve", "--lane", strconv.FormatUint(f.Draw%history.Partitions, 10), []string{"--accept-repeats", "--accept-missing"}[f.Draw/history.Partitions%2]},
	}[f.Kind]
	ctx, cancel := context.WithTimeout(ctx, operateLimit)
	defer cancel()
	stdout, stderr, err := d.runCommand(ctx, args...)
	in.round.log.Notef("%s on %s: %v %s", strings.Join(args, " "), d.name, err, bytes.TrimSpace(stderr))
	if err != nil {
		f.Failed = true
	}
	switch f.Kind {
	case faultVerify:
		return in.round.checkVerify(d, stdout)
	case faultResolve: // no sink was rolled back, so there is nothing to resolve
		if err == nil && !bytes.Contains(stdout, []byte("nothing to resolve")) {
			in.round.complainf("%s on %s has changed something: %s", strings.Join(args, " "), d.name, bytes.TrimSpace(stdout))
		}
	}
	return nil
}

// complainf records that a command did something forbidden.
func (r *round) complainf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.complaints = append(r.complaints, fmt.Sprintf(format, args...))
}

// runCommand runs dinnerbell with the daemon's configuration.
func (d *daemonProcess) runCommand(ctx context.Context, args ...string) (stdout, stderr []byte, err error) {
	cmd := exec.CommandContext(ctx, d.binary, append([]string{"-c", d.config}, args...)...) //nolint:gosec // the daemon under test
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.Bytes(), errs.Bytes(), err
}

// checkVerify checks that `verify --json` found no difference. The last line of
// its output is the result; a command that was interrupted printed none.
func (r *round) checkVerify(d *daemonProcess, out []byte) error {
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	var result struct {
		LSN         string `json:"lsn"`
		Differences int64  `json:"differences"`
	}
	if err := json.Unmarshal(lines[len(lines)-1], &result); err != nil || result.LSN == "" {
		return nil //nolint:nilerr // the command was interrupted
	}
	if result.Differences > 0 {
		r.log.Notef("verify on %s: %s", d.name, out)
		r.failedVerifies.Add(1)
	}
	return nil
}

// verifyDaemons runs `verify` on every daemon at the end of the round: the
// subscriptions must be those of Postgres.
func (r *round) verifyDaemons(ctx context.Context, v *oracle.Verdict) {
	ctx, cancel := context.WithTimeout(ctx, r.servers.opts.limit)
	defer cancel()
	for _, d := range r.daemons {
		if !d.isRunning() {
			continue
		}
		stdout, stderr, err := d.runCommand(ctx, "verify", "--json")
		if err != nil {
			v.Problemf("verify on %s: %v: %s %s", d.name, err, bytes.TrimSpace(stderr), bytes.TrimSpace(stdout))
		}
	}
	if n := r.failedVerifies.Load(); n > 0 {
		v.Problemf("verify found differences %d times while the faults went on", n)
	}
}

// damageState changes one byte in one file of the store. The daemon must not
// run.
func (d *daemonProcess) damageState(rnd *rand.Rand) (what string, err error) {
	var files []string
	root := filepath.Join(d.dir, "store")
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := e.Info(); err == nil && e.Type().IsRegular() && info.Size() > 0 {
			files = append(files, path)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(files) == 0 {
		return "", errSkipped
	}
	if err != nil {
		return "", fmt.Errorf("damage state of %s: %w", d.name, err)
	}
	path := files[rnd.IntN(len(files))]
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("damage state of %s: %w", d.name, err)
	}
	at := rnd.IntN(len(text))
	text[at] ^= byte(1 + rnd.IntN(255))
	return fmt.Sprintf("byte %d of %d of %s", at, len(text), filepath.Base(path)), os.WriteFile(path, text, 0o600)
}
