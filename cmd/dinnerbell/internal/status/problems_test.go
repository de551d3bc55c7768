package status

import (
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/cdc"
	"dinnerbell/cdc/source"
	"dinnerbell/internal/halt"
	"dinnerbell/stream"
)

var testSite = Site{Source: "db:5432", Sink: "db:5432", Brokers: "k:9092", StateDir: "/s"}

const (
	deadSource = "connect to Postgres: user u, database de: db:5432: connection refused (to mend: start Postgres, or correct host and port in source.url (listen_addresses of the server, a firewall))"
	deadSink   = "connect to sink: user u, database de: db:5432: connection refused (to mend: start Postgres, or correct host and port in sink.url (as source.url) (listen_addresses of the server, a firewall))"
	deadKafka  = "unable to dial: dial tcp k:9092: connect: connection refused"
)

// Every server that is dead is named once, with one remedy.
func TestDeadServersAreNamedOnce(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(m *cdc.Status, s *stream.Status)
		site   Site
		want   []string // the beginning of each problem
	}{
		"both, at the start": {func(m *cdc.Status, s *stream.Status) {
			m.State, m.LastError = cdc.StateConnecting, deadSource
			*s = stream.Status{LastError: deadSink, Unreached: stream.Unreached{Sink: deadSink, Kafka: deadKafka}}
		}, testSite, []string{"Postgres at db:5432 (source and sink)", "Kafka at k:9092"}},
		"both, of a lane": {func(m *cdc.Status, s *stream.Status) {
			m.State, m.LastError = cdc.StateConnecting, deadSource
			s.Lanes[0].State, s.Lanes[0].LastError, s.Unreached = stream.LaneStopped, deadKafka, stream.Unreached{Sink: deadSink, Kafka: deadKafka}
		}, testSite, []string{"Postgres at db:5432 (source and sink)", "Kafka at k:9092"}},
		"another sink": {func(_ *cdc.Status, s *stream.Status) {
			*s = stream.Status{Assigned: true, LastError: deadKafka, Unreached: stream.Unreached{Sink: strings.ReplaceAll(deadSink, "db:", "sink:"), Kafka: deadKafka}}
		}, Site{Source: "db:5432", Sink: "sink:5432", Brokers: "k:9092"}, []string{"Kafka at k:9092", "the sink's Postgres at sink:5432"}},
		"Kafka": {func(_ *cdc.Status, s *stream.Status) {
			*s = stream.Status{Assigned: true, LastError: deadKafka, Unreached: stream.Unreached{Kafka: deadKafka}}
		}, testSite, []string{"Kafka at k:9092"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, s := healthy()
			s.Campaigns.Parked, s.Campaigns.Paused = 0, 0
			tc.change(&m, &s)
			r := NewReport("dev", m, s, true)
			list := FindProblems(&r, tc.site)
			if len(list) != len(tc.want) {
				t.Fatalf("%d problems, want %d: %+v", len(list), len(tc.want), list)
			}
			for i, p := range list {
				if !strings.HasPrefix(p.What, tc.want[i]) || strings.Contains(p.What, "to mend") || strings.Contains(p.Mend, "to mend") || !strings.Contains(p.Mend, "it goes on by itself") {
					t.Errorf("problem %d is %q, mended by %q", i, p.What, p.Mend)
				}
			}
			if all := strings.Join(r.Reasons, "\n"); s.Unreached.Kafka != "" && !strings.Contains(all, "k:9092") {
				t.Errorf("the reasons do not name Kafka: %s", all)
			}
		})
	}
}

// A daemon that the group refuses has no lane, and no other daemon need have one: the
// problem names the right and what grants it.
func TestRefusedGroupNamesTheRight(t *testing.T) {
	t.Parallel()
	m, s := healthy()
	s.Campaigns.Parked, s.Campaigns.Paused, s.Lanes = 0, 0, nil
	s.LastError = "unable to join group session: GROUP_AUTHORIZATION_FAILED: consumer group g: User:bell lacks the right Read; no lane is assigned (to mend: kafka-acls.sh --add --operation Read --group g)"
	r := NewReport("dev", m, s, true)
	list := FindProblems(&r, testSite)
	if len(list) != 1 || !strings.HasSuffix(list[0].What, "User:bell lacks the right Read; no lane is assigned") || !strings.Contains(list[0].Mend, "run `kafka-acls.sh --add --operation Read --group g`, and it goes on by itself") {
		t.Errorf("problems: %+v", list)
	}
	if why := r.NoLanesError(); why != s.LastError {
		t.Errorf("why it has no lane: %q", why)
	}
	s.LastError = ""
	if r = NewReport("dev", m, s, true); r.NoLanesError() != "" {
		t.Errorf("where others have them all: %q", r.NoLanesError())
	}
	s.Assigned = false
	if r = NewReport("dev", m, s, true); r.NoLanesError() != "" {
		t.Errorf("before the group has answered: %q", r.NoLanesError())
	}
}

// A mirror waits for another holder of its slot, or for the end of a migration: each has its
// own remedy.
func TestWaitingMirrorNamesItsRemedy(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct{ what, mend, statement string }{
		(&source.SlotHeldError{Slot: "s", PID: 7}).Error():                                  {"waits: slot s is active for PID 7", "names the holder of the slot: end it, or wait", "SELECT slot_name"},
		source.NewHalt("dinnerbell setup", "publication %q does not exist", "p").Error():    {`cannot be mirrored as it is now: publication "p" does not exist; `, "dinnerbell setup", ""},
		source.NewHalt(`ALTER ROLE "b" BYPASSRLS; -- or not`, "row-level security").Error(): {"row-level security; ", `ALTER ROLE "b" BYPASSRLS; -- or not`, `ALTER ROLE "b" BYPASSRLS`},
	} {
		m, s := healthy()
		m.State, m.LastError = cdc.StateWaiting, text
		r := NewReport("dev", m, s, true)
		p := FindProblems(&r, testSite)[0]
		if p.Part != "source" || !strings.Contains(p.What, want.what) || strings.Contains(p.What, "to go on") || !strings.HasSuffix(p.Mend, want.mend) ||
			!strings.HasPrefix(strings.Join(p.Statements, "\n"), want.statement) || (want.statement == "") != (len(p.Statements) == 0) {
			t.Errorf("%s: %+v", text, p)
		}
	}
}

// A lane's error that names no server keeps its remedy apart from what happened.
func TestLaneErrorHasItsOwnRemedy(t *testing.T) {
	t.Parallel()
	what, mend := explainSinkError("takeover: the table x.outbox is missing (to mend: put x.outbox back (all of it), or see `dinnerbell resolve`)", testSite)
	if what != "campaigns wait: takeover: the table x.outbox is missing" || !strings.Contains(mend, "put x.outbox back (all of it), or see `dinnerbell resolve`") {
		t.Errorf("%s: %s", what, mend)
	}
	if _, mend = explainSinkError("takeover: no remedy", testSite); mend != "`dinnerbell doctor` names the cause" {
		t.Error(mend)
	}
}

// Every problem has its remedy taken apart: statements, advice or both.
func TestProblemsHaveStatementsOrAdvice(t *testing.T) {
	t.Parallel()
	m, s := healthy()
	m.SlotWALStatus = "unreserved"
	m.LastError, m.State = "connect to Postgres: db:5432: server refused TLS connection (to mend: ALTER SYSTEM SET ssl = on; SELECT pg_reload_conf(); -- with a certificate)", cdc.StateConnecting
	r := NewReport("dev", m, s, true)
	statements := 0
	for _, p := range FindProblems(&r, testSite) {
		statements += len(p.Statements)
		if len(p.Statements) == 0 && p.Advice == "" || strings.Contains(p.Advice, "ALTER") {
			t.Errorf("%+v", p)
		}
	}
	if statements != 4 {
		t.Errorf("%d statements: %+v", statements, FindProblems(&r, testSite))
	}
}

// A slow answer of Postgres is no wrong clock: the difference counts as far as it exceeds
// the error of the comparison.
func TestUncertainClockIsNoProblem(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		skew, off time.Duration
		problem   bool
	}{
		{time.Second, 0, true}, {-1500 * time.Millisecond, 400 * time.Millisecond, true}, {1500 * time.Millisecond, 700 * time.Millisecond, false},
		{-1500 * time.Millisecond, 700 * time.Millisecond, false}, {900 * time.Millisecond, 0, false},
	} {
		m, s := healthy()
		s.ClockSkew, s.ClockSkewError = tc.skew, tc.off
		r := NewReport("dev", m, s, true)
		found := slices.ContainsFunc(FindProblems(&r, testSite), func(p Problem) bool { return p.Part == "clock" })
		if found != tc.problem {
			t.Errorf("%s, give or take %s: a problem is %t", tc.skew, tc.off, found)
		}
	}
}

func TestStatementOfARemedyIsMarked(t *testing.T) {
	t.Parallel()
	if got := composeRemedy(`ALTER ROLE "u" LOGIN`, "start it"); !strings.Contains(got, "`ALTER ROLE \"u\" LOGIN`") {
		t.Error(got)
	}
}

// A daemon that ends says nothing about its lanes, which end one after another.
func TestStoppingIsNoTrouble(t *testing.T) {
	t.Parallel()
	m, s := healthy()
	s.Lanes = nil
	r := NewReport("dev", m, s, true)
	r.SetStopping()
	list := FindProblems(&r, testSite)
	if len(r.Reasons) != 1 || len(list) != 1 || list[0].Level != LevelWork || strings.Contains(list[0].What+r.Reasons[0], "other members") {
		t.Errorf("%q, %+v", r.Reasons, list)
	}
	r.Halted = newHaltReport(m, stream.Status{Halted: &halt.Error{Part: halt.Stream, What: "w", Hint: "h"}})
	if list := FindProblems(&r, testSite); len(list) != 2 || list[0].Level != LevelHalted {
		t.Errorf("with a halt: %+v", list)
	}
}

// Counts that nobody knows are 0 with a word beside them, and no metric; those of before say of when they are.
func TestFiguresThatAreNotOfNow(t *testing.T) {
	t.Parallel()
	m, _ := healthy()
	r := NewReport("dev", m, stream.Status{FiguresUnknown: true}, true)
	text := get(t, r, "GET", "/api/status").Body.String()
	for _, want := range []string{`"live":0`, `"scheduled":0`, `"notifications":{"decided":0,"shipped":0},"figures":{"unknown":true}`} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not in %s", want, text)
		}
	}
	m, s := healthy()
	s.Lanes[0].State, s.Lanes[0].Epoch, s.FiguresAt = stream.LaneTakeover, 0, time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	r = NewReport("dev", m, s, true)
	if text = get(t, r, "GET", "/api/status").Body.String(); !strings.Contains(text, `"notifications":{"decided":9,"shipped":8},"figures":{"as_of":"2026-05-04T12:00:00Z"}`) {
		t.Errorf("last known: %s", text)
	}
	text = get(t, r, "GET", "/metrics").Body.String()
	for _, bad := range []string{"\ndinnerbell_lanes_notifications{", `dinnerbell_campaigns{state="live"}`, "\ndinnerbell_lane_decided{"} {
		if strings.Contains(text, bad) {
			t.Errorf("the metrics have %s", bad)
		}
	}
	if !strings.Contains(text, `dinnerbell_campaigns{state="parked"} 5`) {
		t.Error("the metrics lack parked campaigns")
	}
}

// Work that stands still makes the daemon unready: it is a problem, also beside a warning or
// work that is no trouble. A worse problem explains it.
func TestStalledWorkIsAProblem(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(m *cdc.Status, s *stream.Status)
		want   []string
	}{
		"beside a parked campaign": {func(*cdc.Status, *stream.Status) {}, []string{"source", "lane 3", "campaigns", "campaigns"}},
		"while it catches up":      {func(m *cdc.Status, _ *stream.Status) { m.State = cdc.StateCatchingUp }, []string{"source", "lane 3", "campaigns", "campaigns", "source"}},
		"with a dead Kafka": {func(_ *cdc.Status, s *stream.Status) {
			s.Lanes[0].State, s.Lanes[0].LastError = stream.LaneStopped, deadKafka
		}, []string{"lane 3", "campaigns", "campaigns"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, s := healthy()
			tc.change(&m, &s)
			m.LagBytes, s.Lanes[0].Partition, s.Lanes[0].Decided, s.Lanes[0].Shipped = 12, 3, 9, 5
			r := NewReport("dev", m, s, true)
			var stalls StallDetector
			begin := time.Unix(1_000_000, 0)
			stalls.Reasons(begin, &r)
			r.Reasons = append(r.Reasons, stalls.Reasons(begin.Add(time.Minute), &r)...)
			list := FindProblems(&r, testSite)
			var parts []string
			for _, p := range list {
				parts = append(parts, p.Part)
			}
			if !slices.Equal(parts, tc.want) || list[0].Level != LevelDown || list[0].Mend == "" {
				t.Errorf("%+v, want %q", list, tc.want)
			}
		})
	}
}
