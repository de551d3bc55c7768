package logging

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func hide(s string) string { return strings.ReplaceAll(s, "hunter2", "[redacted]") }

// No way to put a text into a record keeps its length, its lines or a secret.
func TestTextsAreBoundedAndClean(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("яy", 1<<20) + "hunter2"
	for _, format := range []string{"text", "json"} {
		var out strings.Builder
		log := New(&out, "info", format, hide)
		log.Info("long", "s", long, "e", errors.New(long), "list", []string{long, "hunter2"},
			slog.Group("g", "s", long, "e", fmt.Errorf("x: %w", errors.New("hunter2"))))
		log.With("w", "hunter2 "+long).WithGroup("gr").Warn("a\nb hunter2", "v", slog.StringValue("hunter2"), "d", time.Second)
		text := out.String()
		if len(text) > 20*MaxText {
			t.Errorf("%s: %d bytes were logged", format, len(text))
		}
		if strings.Contains(text, "hunter2") || strings.Count(text, "\n") != 2 || !strings.Contains(text, "bytes more)") {
			t.Errorf("%s: %s", format, text)
		}
		if format == "json" && !json.Valid([]byte(strings.Split(text, "\n")[0])) {
			t.Errorf("not JSON: %s", text)
		}
	}
}

// Ids that differ by their white space alone, or by a character that nobody sees, look
// different in the log and in the events. A text that explains is one line.
func TestIDsLookDifferent(t *testing.T) {
	t.Parallel()
	ids := []string{"c", " c", "c ", "c\n", "c\t", "c\u00a0", "c\u200b", "c\u00ad", "a b", "a  b", "a\nb", `a\nb`, `"c "`}
	for _, format := range []string{"text", "json"} {
		seen := map[string]string{}
		for _, id := range ids {
			var out strings.Builder
			log := New(&out, "info", format, hide)
			log.Info("an operator's command on a campaign", "campaign", id, "error", "two\n  lines")
			line := out.String()
			_, line, _ = strings.Cut(line, "campaign")
			if other, ok := seen[line]; ok {
				t.Errorf("%s: %q looks like %q: %s", format, id, other, line)
			}
			seen[line] = id
			if strings.Count(line, "\n") != 1 || !strings.Contains(line, "two lines") {
				t.Errorf("%s: %q", format, line)
			}
		}
	}
	seen := map[string]string{}
	for _, id := range ids {
		r := slog.NewRecord(time.Now(), slog.LevelInfo, "a command", 0)
		r.AddAttrs(slog.String("campaign", id))
		text := eventText(&r)
		if other, ok := seen[text]; ok || strings.Contains(text, "\n") {
			t.Errorf("event: %q looks like %q: %s", id, other, text)
		}
		seen[text] = id
	}
}

// A warning that comes again and again is written at once, and then seldom, with
// the number of times; another one, and one after a message of its part, at once.
func TestRepeatsAreWrittenSeldom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		log := New(&out, "info", "text", hide)
		source, other := log.With("part", "source"), log.With("part", "stream")
		lines := func() []string {
			text := strings.TrimSpace(out.String())
			out.Reset()
			if text == "" {
				return nil
			}
			return strings.Split(text, "\n")
		}
		fail := func(n int) {
			source.Warn("lost", "error", fmt.Errorf("dial from port %d: refused", n), "left", time.Duration(n), "attempt", n)
		}
		for i := range 60 {
			fail(i)
			time.Sleep(time.Second) //nolint:forbidigo // synctest's clock
		}
		if got := lines(); len(got) != 3 || !strings.Contains(got[1], "repeated=9") || !strings.Contains(got[2], "repeated=19") {
			t.Errorf("in a minute: %q", got)
		}
		other.Warn("lost", "error", "dial from port 1: refused")
		source.Warn("lost", "error", "another cause")
		source.Warn("lost", "lane", 1)
		source.Warn("lost", "lane", 2)
		if got := lines(); len(got) != 4 {
			t.Errorf("different ones: %q", got)
		}
		other.Info("ready")
		fail(1)
		if got := lines(); len(got) != 1 {
			t.Errorf("another part's message: %q", got)
		}
		source.Info("campaign finished", "campaign", "c")
		source.Info("campaigns finished", "within", time.Second)
		fail(1)
		if got := lines(); len(got) != 2 {
			t.Errorf("after lines of campaigns: %q", got)
		}
		source.Info("streaming")
		fail(1)
		if got := lines(); len(got) != 2 {
			t.Errorf("after a message of its own part: %q", got)
		}
		time.Sleep(time.Hour) //nolint:forbidigo // synctest's clock
		fail(1)
		if got := lines(); len(got) != 1 {
			t.Errorf("after an hour: %q", got)
		}
	})
}

func TestManyDifferentWarningsAreForgotten(t *testing.T) {
	t.Parallel()
	r := newRepeatFilter(time.Now)
	for i := range 10 * maxRepeats {
		if _, write := r.addLocked("", fmt.Sprint(i)); !write || len(r.seen) > maxRepeats {
			t.Fatalf("%d: written %t, %d remembered", i, write, len(r.seen))
		}
	}
}

func TestBound(t *testing.T) {
	t.Parallel()
	if got := Bound("ab\ncd", 5); got != "ab\ncd" {
		t.Errorf("%q", got)
	}
	if got := Bound("яяя", 3); got != "я … (4 bytes more)" {
		t.Errorf("%q", got)
	}
}

// Several reasons are told apart in a line of text; in JSON they are a list.
func TestListOfProse(t *testing.T) {
	t.Parallel()
	for format, want := range map[string]string{
		"text": `reasons="source: connecting; lane 0: stopped" brokers="[a:1 b:2]"`,
		"json": `"reasons":["source: connecting","lane 0: stopped"],"brokers":["a:1","b:2"]`,
	} {
		var out strings.Builder
		New(&out, "info", format, func(s string) string { return s }).Warn("not ready", "reasons", []string{"source: connecting", "lane 0: stopped"}, "brokers", []string{"a:1", "b:2"})
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s: %s", format, out.String())
		}
	}
}
