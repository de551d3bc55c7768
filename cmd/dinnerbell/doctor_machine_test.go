package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/doctor"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state/statedir"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Everything about folder, disk and port that keeps a daemon from starting has its
// line.
func TestDoctorNamesWhatTheMachineLacks(t *testing.T) {
	t.Parallel()
	p := newPatient(t, "")
	p.set("kafka.brokers", []string{"127.0.0.1:1"}) // costs nothing
	root := filepath.Dir(p.dir)
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(p.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, f := range p.look(ill{"machine.state_dir", "FAIL", "every user may write in " + p.dir, "chmod o-w " + p.dir}) {
		p.runInShell(strings.Split(f.Fix, ", or ")[0])
	}
	p.look(ill{"machine.state_dir", "ok", p.dir, "-"}, ill{"machine.fsync", "ok", "works", "-"})
	lock, err := statedir.Lock(vfs.Default, p.dir)
	if err != nil {
		t.Fatal(err)
	}
	p.look(ill{"machine.daemon", "FAIL", fmt.Sprintf("process %d holds it and answers nobody", os.Getpid()), "kill"})
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	p.look(ill{"machine.daemon", "ok", "none runs", "-"})

	p.set("state.reserve", "99%")
	p.look(ill{"machine.room", "FAIL", "are free beside the reserve of", "make room"})
	p.set("state.reserve", "1MB")
	p.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('c', 'r'); ANALYZE subscribers_restaurants`)
	p.look(ill{"machine.room", "ok", "the subscriptions take about 53 B", "-"})

	file := filepath.Join(root, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.set("state.dir", filepath.Join(file, "below"))
	found := p.look(ill{"machine.state_dir", "FAIL", file + " is not a folder", "mv " + file + " " + file + ".former"}, ill{"machine.fsync", "unknown", "nothing can be written there", "-"})
	p.runInShell(found[0].Fix)
	p.look(ill{"machine.state_dir", "ok", "does not exist yet; run makes it", "-"}, ill{"machine.fsync", "ok", "works", "-"})
	p.set("state.dir", os.DevNull)
	p.look(ill{"machine.state_dir", "FAIL", os.DevNull + " is not a folder", "set state.dir to a folder"})
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		p.set("state.dir", "/dev/shm/dinnerbell-doctor-test")
		p.look(ill{"machine.file_system", "warn", "it is on tmpfs", "set state.dir to a folder on a disk"})
	}

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	_, port, err := net.SplitHostPort(taken.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	p.set("http.listen", taken.Addr().String())
	p.look(ill{"machine.http", "FAIL", "another process listens there", "ss -ltnp 'sport = :" + port + "'"})
	p.set("http.listen", "192.0.2.1:8420")
	p.set("http.insecure", true)
	p.look(ill{"machine.http", "FAIL", "this machine does not have the address", "set http.listen to 127.0.0.1:8420"})
}

// runInShell runs a command that the doctor prints.
func (p *patient) runInShell(command string) {
	p.t.Helper()
	words := strings.Fields(command)
	if out, err := exec.CommandContext(p.t.Context(), words[0], words[1:]...).CombinedOutput(); err != nil {
		p.t.Errorf("%s: %v: %s", command, err, out)
	}
}

// A server that accepts connections and never answers costs a few seconds, and keeps no
// other system from being looked at. What cannot be checked says why.
func TestDoctorBesideSystemsThatAreSilent(t *testing.T) {
	t.Parallel()
	p := newPatient(t, "")
	silent := envtest.Serve(t, envtest.HoldConn)
	p.set("source.url", "postgres://bell@"+silent+"/de")
	p.set("kafka.brokers", []string{silent})
	p.soon(
		ill{"source.connection", "FAIL", "no answer", "see whether the host is up"},
		ill{"source.wal_level", "unknown", "cannot be checked: no connection", "-"},
		ill{"kafka.connection", "FAIL", "no answer", ""},
		ill{"kafka.topics", "unknown", "cannot be checked: no connection", "-"},
		ill{"sink.connection", "ok", "Postgres", "-"},
		ill{"sink.connections", "unknown", "the number of lanes is not known", "-"},
		ill{"machine.room", "unknown", "the size of the source table is not known", "-"},
		ill{"machine.state_dir", "ok", "", "-"},
	)
	p.set("kafka.tls", map[string]any{"enabled": true})
	p.soon(ill{"kafka.connection", "FAIL", "no answer", ""})
}

// A table that somebody has locked leaves unknown what only its rows tell, and nothing
// else.
func TestDoctorBesideALockedTable(t *testing.T) {
	t.Parallel()
	p := newPatient(t, "")
	p.must("setup")
	p.db.Exec(`DROP INDEX subscribers_feedback_adv_campaign_id_client_id_idx`)
	tx, err := p.owner.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `LOCK TABLE subscribers_feedback, subscribers_restaurants IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	p.soon(
		ill{"source.table", "ok", "subscribers_restaurants", "-"},
		ill{"sink.feedback.duplicates", "unknown", "another transaction has locked the table", "-"},
		ill{"sink.feedback.columns", "unknown", "another transaction has locked the table", "-"},
		ill{"sink.feedback.exists", "ok", "", "-"},
		ill{"sink.clock", "ok", "", "-"},
	)
}

// soon is look with a limit of a second for each check. It looks again for a while: a
// busy machine answers late too.
func (p *patient) soon(ills ...ill) {
	p.t.Helper()
	cfg, err := config.Load(p.config, config.Env{"TEST_URL": p.db.URL})
	if err != nil {
		p.t.Fatal(err)
	}
	envtest.Until(p.t, envtest.Patience, func() error {
		all := map[string][]jsonFinding{}
		for _, s := range doctor.Run(p.t.Context(), doctor.Options{Config: cfg, Logger: slog.New(slog.DiscardHandler), Limit: time.Second}) {
			for _, f := range s.Report {
				all[f.Name] = append(all[f.Name], jsonFinding{f.Name, f.Level.String(), f.Object, f.Found, f.Effect, f.Fix})
			}
		}
		var errs []error
		for _, i := range ills {
			if !slices.ContainsFunc(all[i.check], i.matches) {
				errs = append(errs, fmt.Errorf("%+v is not in %+v", i, all[i.check]))
			}
		}
		return errors.Join(errs...)
	})
}
