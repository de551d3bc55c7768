package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/status"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/internal/testenv/workload"

	"github.com/twmb/franz-go/pkg/kgo"
)

// deployment is a database, topics and a configuration of one test's own.
type deployment struct {
	t       *testing.T
	db      *envtest.DB
	kafka   *envtest.Cluster
	config  string // path
	dir     string // state.dir
	topicIn string
}

func newDeployment(t *testing.T) *deployment {
	t.Helper()
	s := &deployment{t: t, db: envtest.Database(t), kafka: envtest.Kafka(t)}
	root := t.TempDir()
	name := envtest.Name("cmd")
	s.config, s.dir, s.topicIn = filepath.Join(root, "c.yaml"), filepath.Join(root, "state"), name+".campaigns"
	text, err := json.Marshal(map[string]any{
		"source": map[string]any{"url": "${TEST_URL}", "slot": name},
		"kafka": map[string]any{
			"brokers": s.kafka.Brokers, "campaigns": s.topicIn, "notifications": name + ".out",
			"dead_letters": name + ".dead", "progress": name + ".progress", "group": name,
		},
		"state": map[string]any{"dir": s.dir},
		"http":  map[string]any{"listen": "127.0.0.1:0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// password must not show up anywhere.
const password = "hunter2"

// run runs one command in this process.
func (d *deployment) run(ctx context.Context, stderr *syncBuffer, args ...string) (int, string) {
	var stdout syncBuffer
	// The test's server trusts everybody, so a password changes nothing.
	url := strings.Replace(d.db.URL, "postgres@", "postgres:"+password+"@", 1)
	code := runCommandLine(ctx, append([]string{"-c", d.config}, args...), &stdout, stderr, []string{"TEST_URL=" + url})
	return code, stdout.String()
}

// must runs a command that has to succeed.
func (d *deployment) must(args ...string) string {
	d.t.Helper()
	var stderr syncBuffer
	code, out := d.run(d.t.Context(), &stderr, args...)
	if code != 0 {
		d.t.Fatalf("dinnerbell %v: exit %d: %s", args, code, stderr.String())
	}
	return out
}

// daemon starts `run` in this process. stop ends it as SIGTERM does.
func (d *deployment) daemon() (stop func(), done <-chan int, log *syncBuffer) {
	d.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(d.t.Context()))
	ended, log := make(chan int, 1), &syncBuffer{}
	var wg sync.WaitGroup
	wg.Go(func() {
		code, _ := d.run(ctx, log, "run")
		ended <- code
	})
	d.t.Cleanup(func() {
		cancel()
		wg.Wait()
		if d.t.Failed() {
			d.t.Log(log.String())
		}
	})
	return cancel, ended, log
}

// syncBuffer is a strings.Builder for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// The life of a deployment, command by command.
func TestDaemon(t *testing.T) {
	t.Parallel()
	s := newDeployment(t)
	s.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || n, 'diner' FROM generate_series(1, 50) n`)
	first := s.must("setup")
	for line := range strings.Lines(s.must("setup")) {
		if !strings.Contains(line, "there already") {
			t.Errorf("the second setup did something: %safter\n%s", line, first)
		}
	}

	stop, ended, log := s.daemon()
	envtest.Until(t, envtest.Patience, func() error { return s.ready() })
	var stderr syncBuffer
	for _, command := range [][]string{{"rebuild", "--offline"}, {"run"}} {
		if code, _ := s.run(t.Context(), &stderr, command...); code != 1 || !strings.Contains(stderr.String(), "in use") {
			t.Errorf("%v beside a daemon: exit %d, %s", command, code, stderr.String())
		}
	}
	s.produce("lunch", "diner")
	envtest.Until(t, envtest.Patience, func() error {
		if n := s.db.Int(`SELECT count(*) FROM subscribers_feedback`); n != 50 {
			return fmt.Errorf("%d feedback rows of 50", n)
		}
		return nil
	})
	if out := s.must("status"); !strings.Contains(out, "50") || !strings.Contains(out, "streaming") {
		t.Errorf("status: %s", out)
	}
	if text := log.String(); strings.Contains(text, password) || !strings.Contains(text, "source=postgres://postgres@127.0.0.1") {
		t.Errorf("the log shows the password, or no address: %s", text)
	}

	stop()
	if code := <-ended; code != 0 {
		t.Errorf("the daemon ended with %d after SIGTERM", code)
	}
	if code, _ := s.run(t.Context(), &stderr, "status"); code != 1 {
		t.Errorf("status without a daemon: exit %d", code)
	}
	if out := s.must("rebuild", "--offline"); !strings.HasPrefix(out, "rebuilt 50 subscriptions at ") {
		t.Errorf("rebuild: %s", out)
	}
}

// ready asks over the socket, as `status --json` does.
func (d *deployment) ready() error {
	var stderr syncBuffer
	code, out := d.run(d.t.Context(), &stderr, "status", "--json")
	if code == exitDone && !strings.Contains(out, `"ready":true`) {
		d.t.Errorf("status ends with 0: %s", out)
	}
	if code != 0 {
		return errors.New(stderr.String())
	}
	var r status.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return err
	}
	if !r.Ready {
		return fmt.Errorf("not ready: %v", r.Reasons)
	}
	return nil
}

// produce sends a campaign that is valid now.
func (d *deployment) produce(campaign, restaurant string) {
	d.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(d.kafka.Brokers...))
	if err != nil {
		d.t.Fatal(err)
	}
	defer client.Close()
	message := workload.NewCampaign(campaign, restaurant, time.Now(), time.Hour)
	if err := client.ProduceSync(d.t.Context(), &kgo.Record{Topic: d.topicIn, Value: message.JSON()}).FirstErr(); err != nil {
		d.t.Fatal(err)
	}
}

// A source that needs an operator ends the daemon with 3, after the daemon has
// shipped all decided steps.
func TestHaltEndsWithThree(t *testing.T) {
	t.Parallel()
	s := newDeployment(t)
	s.must("setup")
	s.db.Exec(`DROP PUBLICATION dinnerbell`)
	_, ended, log := s.daemon()
	envtest.Until(t, envtest.Patience, func() error {
		var stderr syncBuffer
		code, out := s.run(t.Context(), &stderr, "status", "--json")
		if code != exitHalted || !strings.Contains(out, `"halted":{"part":"source"`) {
			return fmt.Errorf("status: exit %d: %s%s", code, out, stderr.String())
		}
		return nil
	})
	select {
	case code := <-ended:
		if code != 3 || !strings.Contains(log.String(), "publication") {
			t.Errorf("exit %d: %s", code, log.String())
		}
	case <-time.After(envtest.Patience):
		t.Error("still running")
	}
}

// With source.on_lost: halt a lost slot ends the daemon with 3 and the command,
// and after that command it goes on.
func TestLostSlotHaltsIfAskedTo(t *testing.T) {
	t.Parallel()
	s := newDeployment(t)
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), `"source":{`, `"source":{"on_lost":"halt",`, 1)
	if err := os.WriteFile(s.config, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	s.must("setup")
	s.must("rebuild", "--offline")
	s.db.Exec(`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()`)
	s.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('c', 'r')`)
	_, ended, log := s.daemon()
	select {
	case code := <-ended:
		if text := log.String(); code != 3 || !strings.Contains(text, "does not exist") || !strings.Contains(text, "dinnerbell rebuild --offline") {
			t.Errorf("exit %d: %s", code, text)
		}
	case <-time.After(envtest.Patience):
		t.Fatal("still running")
	}
	s.must("rebuild", "--offline")
	s.daemon()
	envtest.Until(t, envtest.Patience, s.ready)
	s.produce("lunch", "r")
	envtest.Until(t, envtest.Patience, func() error {
		if n := s.db.Int(`SELECT count(*) FROM subscribers_feedback`); n != 1 {
			return fmt.Errorf("%d feedback rows, want 1", n)
		}
		return nil
	})
}
