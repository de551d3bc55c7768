package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A refused message is listed with its reason, and sent again once it would be
// accepted: here because the topic now takes larger messages.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	s := newDeployment(t)
	s.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('a', 'diner')`)
	s.must("setup")
	client, err := kgo.NewClient(kgo.SeedBrokers(s.kafka.Brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	notifications := strings.TrimSuffix(s.topicIn, ".campaigns") + ".out"
	s.kafka.Configure(notifications, "max.message.bytes", "2048")
	stop, ended, _ := s.daemon()
	envtest.Until(t, envtest.Patience, func() error { return s.ready() })
	s.produce("lunch "+strings.Repeat("x", 900), "diner")
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: s.topicIn, Value: []byte("\xff")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	s.produce("tea", "diner")
	s.rows(1)

	var out string
	envtest.Until(t, envtest.Patience, func() error { // the rows are there before the records
		if out = s.must("dead-letters", "list"); strings.Count(out, "\n") < 2 {
			return fmt.Errorf("list: %s", out)
		}
		return nil
	})
	if !strings.Contains(out, "0:0  ") || !strings.Contains(out, s.topicIn+"/0@0") || strings.Count(out, "\n") != 2 || !strings.Contains(out, "not valid UTF-8") {
		t.Errorf("list: %s", out)
	}
	lines := json.NewDecoder(strings.NewReader(s.must("dead-letters", "list", "--json")))
	var first, second deadLetterItem
	if lines.Decode(&first) != nil || lines.Decode(&second) != nil || !strings.Contains(first.Value, "lunch") || string(second.Base64) != "\xff" || second.FromAt != 1 || second.Class != "not_json" || time.Since(second.Refused) > time.Hour {
		t.Errorf("list --json: %+v, %+v", first, second)
	}
	for flags, want := range map[string]struct {
		lines int
		text  string
	}{
		"--reason not_json":            {1, "not_json: the value is not valid UTF-8"},
		"--reason NOT_JSON --since 7d": {1, "not_json: the value is not valid UTF-8"},
		"--since 1w":                   {2, ""},
		"--reason ACCEPTS":             {1, "too_large: a notification of it takes"},
		"--reason not":                 {2, ""}, // a part of both texts
		"--reason not --since 1h":      {2, ""},
		"--since 1ns":                  {0, ""},
		"--summary":                    {2, "too_large"},
		"--summary --reason too_large": {1, "too_large"},
		"--summary --json":             {2, `"reason_class":"not_json","count":1,`},
	} {
		if out := s.must(append([]string{"dead-letters", "list"}, strings.Fields(flags)...)...); strings.Count(out, "\n") != want.lines || !strings.Contains(out, want.text) {
			t.Errorf("list %s: %s", flags, out)
		}
	}

	var stderr syncBuffer
	if code, out := s.run(t.Context(), &stderr, "dead-letters", "list", "--reason", "bad_tme"); code != exitDone || out != "" || !strings.Contains(stderr.String(), `no class has that name; the classes are tombstone, not_json`) {
		t.Errorf("an unknown class: exit %d, %s%s", code, out, stderr.String())
	}

	stop()
	if code := <-ended; code != 0 {
		t.Errorf("the daemon ended with %d", code)
	}
	s.kafka.Configure(notifications, "max.message.bytes", "1048576")
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"", 2, "--all"}, {"0:0 --all", 2, "--all"}, {"zero", 2, "PARTITION:OFFSET"}, {"0:0 --reason x", 2, "--reason"}, {"--since yesterday", 2, "--since"},
		{"--reason not_json", 1, "none of 1"}, {"0:99999", 1, "does not hold"}, {"0:" + offsetOf(out, 1), 1, "1 of 1 were not sent"},
	} {
		var stderr syncBuffer
		if code, _ := s.run(t.Context(), &stderr, append([]string{"dead-letters", "retry"}, strings.Fields(tc.args)...)...); code != tc.code || !strings.Contains(stderr.String(), tc.want) {
			t.Errorf("retry %s: exit %d, %s", tc.args, code, stderr.String())
		}
	}
	if out := s.must("dead-letters", "retry", "--reason", "too_large", "--since", "1h"); strings.Count(out, "sent again") != 1 || strings.Count(out, "\n") != 1 {
		t.Errorf("retry --reason: %s", out)
	}
	if out := s.must("dead-letters", "retry", "--all"); strings.Count(out, "sent again") != 1 || strings.Count(out, "left: it would be refused again") != 1 {
		t.Errorf("retry --all: %s", out)
	}
	s.daemon()
	s.rows(2)
	// The message that was sent again is accepted; the other one stays refused.
	s.kafka.Configure(notifications, "max.message.bytes", "2048")
	stderr = syncBuffer{}
	if code, out := s.run(t.Context(), &stderr, "dead-letters", "retry", "--all"); code != exitFailed || !strings.Contains(stderr.String(), "none of 2") || strings.Count(out, "left:") != 2 {
		t.Errorf("retry --all of what is all refused: exit %d, %s%s", code, out, stderr.String())
	}
}

// offsetOf is the offset in the n-th line of a listing.
func offsetOf(listing string, n int) string {
	_, rest, _ := strings.Cut(strings.Split(listing, "\n")[n], ":")
	offset, _, _ := strings.Cut(rest, " ")
	return offset
}
