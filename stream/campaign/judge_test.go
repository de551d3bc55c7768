package campaign

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected output in testdata")

// TestJudge plays the scripts of testdata/judge. A script is blocks, each with its
// output below "----". Nothing is accepted when a block begins, and it is second 100.
//
//	now SECOND
//	parked | paused | resumed | cancelled @TIME   (of the accepted version)
//	LANE/OFFSET @TIME CONTENT until END [distinct] [replayed] [superseded]
//
// Each message is judged, and the outcome applied to the accepted version.
func TestJudge(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("testdata/judge/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			script, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var blocks []string
			for block := range strings.SplitSeq(strings.TrimSpace(string(script)), "\n\n") {
				input, _, _ := strings.Cut(block, "\n----")
				blocks = append(blocks, input+"\n----\n"+playMessages(t, input))
			}
			got := strings.Join(blocks, "\n")
			if *rewrite {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got != string(script) {
				t.Errorf("output differs; run with -rewrite to accept it:\n%s", got)
			}
		})
	}
}

// playMessages judges the messages of one block and prints the outcomes and the version
// that is accepted in the end.
func playMessages(t *testing.T, input string) string {
	t.Helper()
	var out strings.Builder
	var accepted *Version
	contents := map[Fingerprint]string{}
	now := int64(100)
	for line := range strings.Lines(input) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if _, err := fmt.Sscanf(line, "now %d", &now); err == nil {
			continue
		}
		if accepted != nil && hold(line, accepted) {
			continue
		}
		var m Message
		var content string
		if _, err := fmt.Sscanf(line, "%d/%d @%d %s until %d", &m.Lane, &m.Offset, &m.Time, &content, &m.End); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		words := strings.Fields(line)[5:]
		text := fmt.Sprintf("%s until %d", content, m.End)
		m.Distinct, m.Replayed, m.Superseded = slices.Contains(words, "distinct"), slices.Contains(words, "replayed"), slices.Contains(words, "superseded")
		m.Fingerprint = sha256.Sum256([]byte(text))
		contents[m.Fingerprint] = text
		outcome := Judge(m, accepted, now)
		switch outcome {
		case Repeat: // the row stays as it is
			accepted.Position, accepted.Time = m.Position, m.Time
		case First, Edit, Cancel, Expired, Revive, Held:
			if outcome != Expired || !m.Replayed {
				v := m.Version()
				if outcome == Held {
					v.Hold = Paused
				}
				accepted = &v
			}
		case Older, Again, Stands:
		}
		fmt.Fprintf(&out, "%d/%d: %s\n", m.Lane, m.Offset, outcome)
	}
	if accepted != nil {
		state := [...]string{"", ", parked", ", paused", ", cancelled"}[accepted.Hold]
		fmt.Fprintf(&out, "accepted: %d/%d @%d %s%s\n", accepted.Lane, accepted.Offset, accepted.Time, contents[accepted.Fingerprint], state)
	}
	return out.String()
}

// hold plays a line about what an operator or a limit does with the accepted version.
func hold(line string, accepted *Version) bool {
	name, at, _ := strings.Cut(line, " @")
	holds := map[string]Hold{"parked": Parked, "paused": Paused, "cancelled": Cancelled, "resumed": NotHeld}
	h, ok := holds[name]
	if !ok {
		return false
	}
	accepted.Hold, accepted.RowVersion = h, accepted.RowVersion+1
	_, _ = fmt.Sscanf(at, "%d", &accepted.HeldAt)
	return true
}
