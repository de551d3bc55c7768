package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"dinnerbell/scripts/chaos/oracle"
	"dinnerbell/scripts/chaos/slope"
)

// summary is the content of build/chaos.json.
type summary struct {
	Seed         uint64         `json:"seed"`
	First        int            `json:"first_round"`
	Broker       string         `json:"broker"`
	Daemons      int            `json:"daemons"`
	Rounds       int            `json:"rounds"`
	Kills        int            `json:"kills"` // faults with a SIGKILL
	OtherFaults  int            `json:"other_faults"`
	Faults       map[string]int `json:"faults"`
	Transactions int            `json:"transactions"`
	Campaigns    int            `json:"campaigns"`
	Notified     int            `json:"notifications"`
	Musts        int            `json:"musts"`
	DeadLetters  int            `json:"dead_letters"`
	Missing      int            `json:"missing"`
	Doubled      int            `json:"doubled"`
	Forbidden    int            `json:"forbidden"`
	Mismatched   int            `json:"mismatched"`
	Longest      float64        `json:"longest_recovery_seconds"`
	Slopes       []slope.Result `json:"slopes,omitempty"` // of a soak
	Failed       []int          `json:"failed_rounds"`
	Problems     []string       `json:"problems"` // the first problems of failed rounds
}

func newSummary(o *options) *summary {
	return &summary{Seed: o.seed, First: o.first, Broker: o.broker, Daemons: o.daemons, Faults: map[string]int{}, Failed: []int{}, Problems: []string{}}
}

// addRound adds a round to the counts.
func (s *summary) addRound(r *round, v *oracle.Verdict, err error) {
	s.Rounds++
	if r.log != nil {
		for _, f := range r.log.Faults {
			s.Faults[f.Kind]++
			if slices.Contains(kills, f.Kind) {
				s.Kills++
			} else {
				s.OtherFaults++
			}
		}
		s.Transactions += len(r.log.Transactions)
		s.Campaigns += len(r.log.Messages)
	}
	s.Notified += v.Notifications
	s.Musts += v.Musts
	s.DeadLetters += v.DeadLetters
	s.Missing += v.Counts[oracle.Missing]
	s.Doubled += v.Counts[oracle.Doubled]
	s.Forbidden += v.Counts[oracle.Forbidden]
	s.Mismatched += v.Counts[oracle.Mismatched]
	s.Longest = max(s.Longest, r.recovery.Seconds())
	if v.Failed() || err != nil {
		s.Failed = append(s.Failed, r.number)
	}
	if err != nil {
		s.Problems = append(s.Problems, err.Error())
	}
	for _, p := range v.Problems {
		s.Problems = append(s.Problems, fmt.Sprintf("round %d: %s", r.number, p))
	}
}

// roundLine renders the line that the program prints for a round.
func (s *summary) roundLine(r *round, v *oracle.Verdict, err error, took time.Duration) string {
	verdict := "ok"
	switch {
	case err != nil:
		verdict = "ERROR " + err.Error()
	case v.Failed():
		verdict = fmt.Sprintf("FAILED %v", v.Counts)
		for _, p := range v.Problems {
			verdict += "\n    " + p
		}
		for _, f := range v.Findings[:min(5, len(v.Findings))] {
			verdict += fmt.Sprintf("\n    %s: %s: %s", f.Kind, f.What, f.Why)
		}
	}
	if r.log == nil {
		return fmt.Sprintf("round %d: %s", r.number, verdict)
	}
	return fmt.Sprintf("round %d: %d faults, %d transactions, %d messages, %d notifications (%d musts), %d dead letters, recovered in %.1f s, %.0f s in all: %s",
		r.number, len(r.log.Faults), len(r.log.Transactions), len(r.log.Messages), v.Notifications, v.Musts, v.DeadLetters, r.recovery.Seconds(), took.Seconds(), verdict)
}

// writeSummary replaces the file.
func (s *summary) writeSummary(path string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write summary: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("write summary: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("write summary: %w", err)
	}
	return nil
}

func (s *summary) failure() error {
	switch {
	case s.Rounds == 0:
		return errors.New("no round was run")
	case len(s.Failed) > 0:
		return fmt.Errorf("%d of %d rounds failed: %v", len(s.Failed), s.Rounds, s.Failed)
	}
	return nil
}
