package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"dinnerbell/cdc"
	"dinnerbell/cdc/tablecopy"
	"dinnerbell/cmd/dinnerbell/internal/status"
	"dinnerbell/internal/halt"
	"dinnerbell/stream"
)

func TestSnapshotText(t *testing.T) {
	t.Parallel()
	src := status.Source{SnapshotRows: 1200000, SnapshotPercent: 40, SnapshotRowsPerSecond: 500000, SnapshotSecondsLeft: 3.6}
	for total, want := range map[int64]string{
		3000000: "1,200,000 of about 3,000,000 rows (40.0%), 500,000 rows/s, 4s left",
		0:       "1,200,000 rows",
	} {
		src.SnapshotTotal = total
		if got := snapshotText(&src); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestStatusForPeople(t *testing.T) {
	t.Parallel()
	m := cdc.Status{State: cdc.StateCatchingUp, LastError: "reset", LagBytes: 5 << 20, Lag: 90 * time.Second, Subscriptions: 1234567, SafeWALSize: -1}
	s := stream.Status{Lanes: []stream.LaneStatus{{State: "running", LagMessages: 1234, Lag: 1500 * time.Millisecond, Oldest: 4 * time.Second}, {Partition: 1, State: "takeover", LagMessages: -1, Lag: -1}}, Halted: &halt.Error{Part: halt.Stream, What: "K > P", Hint: "do this"}}
	checkText(t, status.NewReport("dev", m, s, true), "NO", "source: catching_up: reset", "stream: K > P", "to mend: do this", "5.0 MiB behind (1m30s), slot not known", "1,234,567", "1,234, 1.5s", " 4s ", " — ", "next offset")
	m = cdc.Status{State: cdc.StateSnapshot, LagBytes: -1, Lag: -1, LagChanges: -1, Snapshot: tablecopy.Progress{Rows: 12, Total: 30, Percent: 40, Rate: 5, Left: 3600 * time.Millisecond}}
	checkText(t, status.NewReport("dev", m, s, false), "rows/s", "— behind")
}

// Each statement that mends a problem has a line of its own, to be pasted.
func TestStatementsHaveTheirLines(t *testing.T) {
	t.Parallel()
	const grant, index = `GRANT SELECT ON "t" TO "u"`, `ALTER TABLE "t" REPLICA IDENTITY DEFAULT`
	m := cdc.Status{State: cdc.StateHalted, Halted: &halt.Error{Part: halt.Source, What: "a right is missing", Hint: grant + "; " + index + "; then start again"}, SafeWALSize: -1}
	r := status.NewReport("dev", m, stream.Status{}, true)
	r.Problems = status.FindProblems(&r, status.Site{})
	checkText(t, r, "to mend: then start again\n", " "+grant+";\n", " "+index+";\n")
	r.Problems = nil
	checkText(t, r, "to mend: then start again\n", " "+grant+";\n", " "+index+";\n")
	r.Problems = []status.Problem{{Part: "source", Level: status.LevelWarning, What: "w", Mend: "`ALTER SYSTEM SET a = 1`, then `SELECT pg_reload_conf()`"}}
	checkText(t, r, "to mend:\n", " ALTER SYSTEM SET a = 1;\n", " SELECT pg_reload_conf();\n")
}

// checkText prints a report as it comes over the socket.
func checkText(t *testing.T, r status.Report, wanted ...string) {
	t.Helper()
	var out strings.Builder
	encoded, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var decoded status.Report
	if err := json.Unmarshal(encoded, &decoded); err != nil {
		t.Fatal(err)
	}
	if err := printStatus(&out, &decoded); err != nil {
		t.Fatal(err)
	}
	for _, want := range wanted {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}

// A problem of yesterday does not read as one of this morning.
func TestMomentHasItsDay(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 4, 9, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		t    time.Time
		want string
	}{{now.Add(-time.Hour), "08:00:00"}, {now.Add(-25 * time.Hour), "2026-05-03 08:00:00"}} {
		if got := momentText(tc.t, now); got != tc.want {
			t.Errorf("%s, want %s", got, tc.want)
		}
	}
}
