package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
)

// lineOf returns the line of a check, with its further lines joined; "" if there is
// none.
func lineOf(out, check string) string {
	lines := strings.Split(out, "\n")
	at := slices.IndexFunc(lines, func(line string) bool { return strings.HasPrefix(line, "  "+check+" ") })
	if at < 0 {
		return ""
	}
	text := strings.Join(strings.Fields(lines[at]), " ")
	for _, more := range lines[at+1:] {
		if !strings.HasPrefix(more, "   ") {
			break
		}
		text += " " + strings.TrimSpace(more)
	}
	return text
}

// jsonFinding is an object of doctor --json, as docs/operations.md describes it.
type jsonFinding struct {
	Name   string `json:"name"`
	Level  string `json:"level"`
	Object string `json:"object"`
	Found  string `json:"found"`
	Effect string `json:"effect"`
	Fix    string `json:"fix"`
}

// asItSays is the exit code that the findings of the doctor ask for.
const asItSays = -1

// doctor runs `doctor --json`, checks the exit code, and returns the findings by their
// names.
func (d *deployment) doctor(code int) map[string][]jsonFinding {
	d.t.Helper()
	var stderr syncBuffer
	got, out := d.run(d.t.Context(), &stderr, "doctor", "--json")
	if code == asItSays {
		code = exitDone
		if strings.Contains(out, `"level":"FAIL"`) {
			code = exitFailed
		}
	}
	if got != code {
		wrong := slices.DeleteFunc(strings.Split(out, "\n"), func(line string) bool { return !strings.Contains(line, `"FAIL"`) })
		d.t.Errorf("doctor ends with %d, want %d: %s\n%s", got, code, stderr.String(), strings.Join(wrong, "\n"))
	}
	found := map[string][]jsonFinding{}
	for line := range strings.Lines(out) {
		var f jsonFinding
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			d.t.Fatalf("%q: %v", line, err)
		}
		found[f.Name] = append(found[f.Name], f)
	}
	return found
}

// The doctor works before setup, after it, and beside a running daemon, whose slot,
// port and folder are in use and in order. It makes nothing.
func TestDoctorInTheLifeOfADeployment(t *testing.T) {
	t.Parallel()
	s := newDeployment(t)
	s.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || n, 'diner' FROM generate_series(1, 50) n; ANALYZE subscribers_restaurants`)
	port, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.config, []byte(strings.Replace(string(text), "127.0.0.1:0", testenv.Loopback(port), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	look := func(code int, want map[string]string) {
		t.Helper()
		var stderr syncBuffer
		got, out := s.run(t.Context(), &stderr, "doctor")
		if got != code {
			t.Errorf("exit %d, want %d: %s", got, code, stderr.String())
		}
		for check, want := range want {
			if line := lineOf(out, check); !strings.HasPrefix(line, check+" "+want) {
				t.Errorf("line %q, want %s %s", line, check, want)
			}
		}
		if t.Failed() {
			t.Fatal(out)
		}
		if strings.Contains(out, password) {
			t.Error("the password is shown")
		}
	}

	// Before setup run would refuse, and one command mends all of it.
	var fixes []string
	for _, found := range s.doctor(exitFailed) {
		for _, f := range found {
			if f.Level == "FAIL" {
				fixes = append(fixes, f.Fix)
			}
		}
	}
	slices.Sort(fixes)
	if fixes = slices.Compact(fixes); len(fixes) != 1 || fixes[0] != "dinnerbell setup" {
		t.Errorf("before setup the fixes are %q", fixes)
	}
	look(exitFailed, map[string]string{"publication": "FAIL", "layout": "FAIL", "topics": "FAIL", "slot": "ok", "daemon": "ok none runs", "state_dir": "ok"})
	if _, err := os.Stat(s.dir); err == nil {
		t.Error("the doctor made state.dir")
	}
	s.must("setup")
	look(exitDone, map[string]string{"publication": "ok", "layout": "ok", "table": `ok "public"."subscribers_restaurants", about 50 rows`, "transactional_ids": "ok", "http": "ok"})

	stop, ended, log := s.daemon()
	envtest.Until(t, envtest.Patience, s.ready)
	look(exitDone, map[string]string{"daemon": "ok runs, version dev", "http": "ok " + testenv.Loopback(port) + ", used by the running daemon", "state_dir": "ok " + s.dir, "walsender": "ok"})
	for range 3 {
		if f := s.doctor(exitDone)["source.slot"]; len(f) != 1 || !strings.Contains(f[0].Found, "used by the running daemon") {
			t.Errorf("slot: %+v", f)
		}
	}
	s.produce("lunch", "diner")
	envtest.Until(t, envtest.Patience, func() error {
		if n := s.db.Int(`SELECT count(*) FROM subscribers_feedback`); n != 50 {
			return fmt.Errorf("%d feedback rows of 50", n)
		}
		return nil
	})
	if epochs := s.db.Int(`SELECT max(epoch) FROM dinnerbell.lane`); epochs != 1 {
		t.Errorf("the lane was taken over %d times: %s", epochs, log.String())
	}
	stop()
	<-ended
	look(exitDone, map[string]string{"slot": "ok", "daemon": "ok none runs", "http": "ok " + testenv.Loopback(port) + " is free"})
}
