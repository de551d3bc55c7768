package stream

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/halt"
	"dinnerbell/internal/pgsession"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/operator"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic"
)

// halted runs the service until it halts, and returns why.
func (w *deployment) halted() *halt.Error {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	err := New(w.cfg, w.store, w.barrier).Run(ctx)
	halted, ok := errors.AsType[*halt.Error](err)
	if !ok {
		w.Fatalf("the service ended with %v, not a halt", err)
	}
	return halted
}

// resolve resolves lane 0 and returns the lines of the report.
func (w *deployment) resolve(accept operator.Choice) string {
	w.Helper()
	did, err := operator.Resolve(w.Context(), w.cfg.Config, 0, accept)
	if err != nil {
		w.Fatalf("resolve: %v", err)
	}
	return strings.Join(did, "\n")
}

func TestResolveNamesALaneThatIsNot(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, nil)
	_, err := operator.Resolve(w.Context(), w.cfg.Config, 9, operator.AcceptMissing)
	if want := "there is no lane 9: topic " + w.cfg.Kafka.Campaigns + " has no such partition"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}

// audit runs Audit and returns the findings that are not OK.
func (w *deployment) audit() []operator.Finding {
	w.Helper()
	findings, err := operator.Audit(w.Context(), w.cfg.Config)
	if err != nil {
		w.Fatalf("audit: %v", err)
	}
	if len(findings) == 0 {
		w.Error("the audit looked at nothing")
	}
	return slices.DeleteFunc(findings, func(f operator.Finding) bool { return f.OK })
}

// delivered makes a world in which campaigns c1 and, after save, c2 have
// reached everybody, and the service is stopped.
func delivered(t *testing.T, save func(w *deployment)) *deployment {
	t.Helper()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 500), "r2": clients("0001", 30)})
	_, stop := w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	w.expect(map[string][]string{"c1": w.subs["r1"]})
	stop()
	if bad := w.audit(); len(bad) > 0 {
		t.Errorf("audit: %+v", bad)
	}
	save(w)
	_, stop = w.start()
	w.produce(0, encodeCampaign(w.campaign("c2", "r1")))
	w.expect(map[string][]string{"c1": w.subs["r1"], "c2": w.subs["r1"]})
	stop()
	return w
}

// postgresBackup copies the tables aside; postgresRestore puts the copy back.
func postgresBackup(w *deployment) {
	for _, table := range []string{"public.subscribers_feedback", "dinnerbell.lane", "dinnerbell.campaign", "dinnerbell.outbox"} {
		w.db.Exec("CREATE TABLE " + table + "_backup AS TABLE " + table)
	}
}

func postgresRestore(w *deployment) {
	for _, table := range []string{"public.subscribers_feedback", "dinnerbell.lane", "dinnerbell.campaign", "dinnerbell.outbox"} {
		w.db.Exec("TRUNCATE " + table)
		w.db.Exec("INSERT INTO " + table + " TABLE " + table + "_backup")
	}
}

func TestPostgresRestoredFromABackupHalts(t *testing.T) {
	t.Parallel()
	for _, accept := range []operator.Choice{operator.AcceptRepeats, operator.AcceptMissing} {
		t.Run(string(accept), func(t *testing.T) {
			t.Parallel()
			w := delivered(t, postgresBackup)
			postgresRestore(w)
			if bad := w.audit(); len(bad) == 0 {
				t.Error("the audit does not see that K > P")
			}
			halted := w.halted()
			if !strings.Contains(halted.What, "Postgres was rolled back") || !strings.Contains(halted.Hint, "dinnerbell resolve --lane 0 --accept-") {
				t.Errorf("halt: %v", halted)
			}
			t.Log(w.resolve(accept))
			if again := w.resolve(accept); !strings.Contains(again, "nothing to resolve") {
				t.Errorf("resolved again: %s", again)
			}
			w.start()
			w.produce(0, encodeCampaign(w.campaign("c3", "r2")))
			want := map[string][]string{"c1": w.subs["r1"], "c3": w.subs["r2"]}
			if accept == operator.AcceptRepeats {
				want["c2"] = w.subs["r1"] // again: its rows were lost
			}
			envtest.Until(t, patience, func() error { return matches(w.rows(), want) })
			records := map[string][]string{"c1": w.subs["r1"], "c2": w.subs["r1"], "c3": w.subs["r2"]}
			if accept == operator.AcceptRepeats {
				records["c2"] = slices.Concat(w.subs["r1"], w.subs["r1"])
			}
			envtest.Until(t, patience, func() error { return matches(w.records(), records) })
		})
	}
}

// recreate deletes a topic and makes it again, with the settings that it had.
func (w *deployment) recreate(name string) {
	w.Helper()
	adm := kadm.NewClient(w.kafka.Client())
	details, err := adm.ListTopics(w.Context(), name)
	if err != nil {
		w.Fatal(err)
	}
	settings, err := topic.ReadSettings(w.Context(), adm, name)
	if err != nil {
		w.Fatal(err)
	}
	configs := map[string]*string{}
	for name, c := range settings[name] {
		if c.Source == kmsg.ConfigSourceDynamicTopicConfig {
			configs[name] = c.Value
		}
	}
	if _, err := adm.DeleteTopics(w.Context(), name); err != nil {
		w.Fatal(err)
	}
	envtest.Until(w, patience, func() error { // a deletion takes a moment
		_, err := adm.CreateTopic(w.Context(), int32(len(details[name].Partitions)), 1, configs, name)
		return err
	})
	envtest.AwaitTopic(w, adm, name)
}

func TestTopicDeletedAndMadeAgainHalts(t *testing.T) {
	t.Parallel()
	for name, topic := range map[string]func(*deployment) string{
		"campaigns":     func(w *deployment) string { return w.cfg.Kafka.Campaigns },
		"notifications": func(w *deployment) string { return w.cfg.Kafka.Notifications },
		"progress":      func(w *deployment) string { return w.cfg.Kafka.Progress },
	} {
		for _, accept := range []operator.Choice{operator.AcceptRepeats, operator.AcceptMissing} {
			t.Run(name+" "+string(accept), func(t *testing.T) {
				t.Parallel()
				w := delivered(t, func(*deployment) {})
				w.recreate(topic(w))
				if halted := w.halted(); !strings.Contains(halted.What, "deleted and made again") {
					t.Errorf("halt: %v", halted)
				}
				t.Log(w.resolve(accept))
				w.start()
				w.produce(0, encodeCampaign(w.campaign("c3", "r2")))
				// Nobody has two rows, whatever was accepted; the topic is the choice's matter.
				envtest.Until(t, patience, func() error {
					return matches(w.rows(), map[string][]string{"c1": w.subs["r1"], "c2": w.subs["r1"], "c3": w.subs["r2"]})
				})
				records := map[string][]string{"c1": w.subs["r1"], "c2": w.subs["r1"], "c3": w.subs["r2"]}
				switch {
				case name == "notifications" && accept == operator.AcceptMissing:
					delete(records, "c1")
					delete(records, "c2")
				case name == "progress" && accept == operator.AcceptRepeats:
					records["c1"], records["c2"] = slices.Concat(records["c1"], records["c1"]), slices.Concat(records["c2"], records["c2"])
				}
				envtest.Until(t, patience, func() error { return matches(w.records(), records) })
			})
		}
	}
}

// The progress topic and the notifications topic must never be shorter than
// they were; neither can be cut at its end by a client, so what Postgres
// remembers of them is moved instead.
func TestKafkaThatLostItsEndHalts(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"progress":      `UPDATE dinnerbell.lane SET shipped = shipped + 5, seq = seq + 5`,
		"notifications": `UPDATE dinnerbell.lane SET notifications_ends[1] = 100000`,
		"outbox":        `UPDATE dinnerbell.lane SET seq = seq + 3`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := delivered(t, func(*deployment) {})
			w.db.Exec(sql)
			if halted := w.halted(); !strings.Contains(halted.What, "Kafka was rolled back") {
				t.Errorf("halt: %v", halted)
			}
			w.resolve(operator.AcceptMissing)
			w.start()
			w.produce(0, encodeCampaign(w.campaign("c3", "r2")))
			w.expect(map[string][]string{"c1": w.subs["r1"], "c2": w.subs["r1"], "c3": w.subs["r2"]})
		})
	}
}

// A campaign that vanished before it was read is never jumped over in silence.
func TestInputDeletedBeforeItWasReadHalts(t *testing.T) {
	t.Parallel()
	w := delivered(t, func(*deployment) {})
	w.produce(0, encodeCampaign(w.campaign("lost", "r1")))
	w.produce(0, encodeCampaign(w.campaign("c3", "r2")))
	adm := kadm.NewClient(w.kafka.Client())
	var upTo kadm.Offsets
	upTo.Add(kadm.Offset{Topic: w.cfg.Kafka.Campaigns, Partition: 0, At: 3})
	if _, err := adm.DeleteRecords(t.Context(), upTo); err != nil {
		t.Fatal(err)
	}
	if halted := w.halted(); !strings.Contains(halted.What, "deleted before they were read") {
		t.Errorf("halt: %v", halted)
	}
	if said := w.resolve(operator.AcceptMissing); !strings.Contains(said, "campaigns at offsets 2 to 2 are gone") {
		t.Errorf("resolve said: %s", said)
	}
	w.start()
	w.expect(map[string][]string{"c1": w.subs["r1"], "c2": w.subs["r1"], "c3": w.subs["r2"]})
}

// Only the input is gone: decided steps that are not shipped are shipped, whatever
// is accepted.
func TestResolvingTheInputLeavesTheOutboxAlone(t *testing.T) {
	t.Parallel()
	for _, accept := range []operator.Choice{operator.AcceptRepeats, operator.AcceptMissing} {
		t.Run(string(accept), func(t *testing.T) {
			t.Parallel()
			w := delivered(t, func(*deployment) {})
			w.uncounted = true // the row of c3 comes from no step
			pending := &record.Payload{Dead: []record.DeadLetter{{Topic: "t", Reason: "because"}}}
			now := time.Now().Unix()
			c := w.campaign("c3", "r2")
			if err := pending.Add(c, now, "x"); err != nil {
				t.Fatal(err)
			}
			w.db.Exec(`INSERT INTO dinnerbell.outbox (lane, seq, notifications, payload) SELECT lane, seq + 1, 1, $1 FROM dinnerbell.lane`, pending.Encode())
			w.db.Exec(`UPDATE dinnerbell.lane SET seq = seq + 1`)
			w.db.Exec(`INSERT INTO subscribers_feedback (restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
 adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, client_id, trigger_datetime_created)
 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'x', $9)`, c.RestaurantID, c.ID, c.Content, c.Owner, c.OwnerContact, c.Start, c.End, c.Created, now)
			w.recreate(w.cfg.Kafka.Campaigns)
			if halted := w.halted(); !strings.Contains(halted.What, "made again") {
				t.Errorf("halt: %v", halted)
			}
			w.resolve(accept)
			w.start()
			w.expect(map[string][]string{"c1": w.subs["r1"], "c2": w.subs["r1"], "c3": {"x"}})
			if n := len(w.kafka.ReadAll(w.cfg.Kafka.DeadLetters)); n != 1 {
				t.Errorf("%d dead letters", n)
			}
		})
	}
}

// Offsets of the former log do not make the new one's messages look old.
func TestCampaignsAreEditedAfterTheirTopicWasMadeAgain(t *testing.T) {
	t.Parallel()
	w := delivered(t, func(*deployment) {})
	_, stop := w.start()
	c := w.campaign("scheduled", "r2")
	c.Start += 3000
	w.produce(0, encodeCampaign(c), encodeCampaign(c), encodeCampaign(c))
	w.awaitOffset(0, 5)
	stop()
	w.recreate(w.cfg.Kafka.Campaigns)
	if halted := w.halted(); !strings.Contains(halted.What, "made again") {
		t.Errorf("halt: %v", halted)
	}
	w.resolve(operator.AcceptMissing)
	w.start()
	c.Start -= 3000
	w.produce(0, encodeCampaign(c))
	w.expect(map[string][]string{"c1": w.subs["r1"], "c2": w.subs["r1"], "scheduled": w.subs["r2"]})
}

// A topic that accepts less than the decided records halts the lane for an operator.
func TestTopicThatAcceptsLessHalts(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	big := &record.Payload{}
	c := w.campaign("c", "r1")
	c.Content = strings.Repeat("x", 2_000_000)
	if err := big.Add(c, 1, "a"); err != nil {
		t.Fatal(err)
	}
	envtest.Until(t, patience, func() error { return initLanesFor(w) }) // a new topic is not known at once
	w.db.Exec(`INSERT INTO dinnerbell.outbox (lane, seq, notifications, payload) VALUES (0, 1, 1, $1)`, big.Encode())
	w.db.Exec(`UPDATE dinnerbell.lane SET seq = 1`)
	if halted := w.halted(); !strings.Contains(halted.Hint, "max.message.bytes") {
		t.Errorf("halt: %v", halted)
	}
}

func initLanesFor(w *deployment) error {
	conn, err := w.cfg.Sink.Connect(w.Context(), "test")
	if err != nil {
		return err
	}
	defer sink.CloseConn(conn)
	return takeover.InitLanes(w.Context(), w.cfg.WithDefaults(), conn)
}

// A damaged outbox row is never shipped.
func TestDamagedOutboxHalts(t *testing.T) {
	t.Parallel()
	w := delivered(t, func(*deployment) {})
	w.db.Exec(`INSERT INTO dinnerbell.outbox (lane, seq, notifications, payload) SELECT lane, seq + 1, 1, 'DB' FROM dinnerbell.lane`)
	w.db.Exec(`UPDATE dinnerbell.lane SET seq = seq + 1`)
	if halted := w.halted(); !strings.Contains(halted.What, "damaged") {
		t.Errorf("halt: %v", halted)
	}
}

// The audit finds differences between the outbox and the sinks.
func TestAuditFindsWhatIsMissing(t *testing.T) {
	t.Parallel()
	w := delivered(t, func(*deployment) {})
	if bad := w.audit(); len(bad) > 0 {
		t.Fatalf("audit of a sound deployment: %+v", bad)
	}
	w.db.Exec(`DELETE FROM subscribers_feedback WHERE id = (SELECT max(id) FROM subscribers_feedback)`)
	if bad := w.audit(); len(bad) != 1 || !strings.Contains(bad[0].What, "1 have no feedback row") {
		t.Errorf("a row is gone, the audit says %+v", bad)
	}
	w.db.Exec(`UPDATE dinnerbell.outbox SET seq = seq + 7`)
	if bad := w.audit(); len(bad) == 0 {
		t.Error("the audit does not see that the outbox is not contiguous")
	}
}

// Postgres may read and sort for longer than a transaction may stand idle.
func TestResolveWaitsForALongSort(t *testing.T) {
	t.Parallel()
	w := delivered(t, func(*deployment) {})
	w.db.Exec(`UPDATE dinnerbell.lane SET notifications_ends[1] = 100000`)
	w.db.Exec(`CREATE TYPE mood AS ENUM ('seen');
CREATE FUNCTION slow(mood) RETURNS text LANGUAGE sql STRICT AS $$SELECT pg_sleep(0.5)::text || 'seen'$$;
CREATE CAST (mood AS text) WITH FUNCTION slow(mood);
ALTER TABLE subscribers_feedback ALTER feedback TYPE mood USING NULL;
UPDATE subscribers_feedback SET feedback = 'seen' WHERE ctid = (SELECT min(ctid) FROM subscribers_feedback)`)
	w.cfg.Sink.Pins = []pgsession.Setting{{Name: "idle_in_transaction_session_timeout", Value: "100ms"}}
	if _, err := operator.Resolve(t.Context(), w.cfg.Config, 0, operator.AcceptRepeats); err != nil {
		t.Errorf("resolve: %v", err)
	}
}
