package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// history is what was done in a round, in one time: the duration since its
// beginning. Each event is also a JSON line in the round's folder.
type history struct {
	began time.Time

	mu        sync.Mutex // guards what is below
	file      *os.File
	err       error // of writing file
	txns      []*txn
	campaigns map[int64]*message // by number
	faults    []*fault           // those that were done
}

func newHistory(path string) (*history, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("make history: %w", err)
	}
	return &history{began: time.Now(), file: f, campaigns: map[int64]*message{}}, nil
}

func (h *history) now() time.Duration { return time.Since(h.began) }

// at is the moment at which a Unix second begins.
func (h *history) at(unix int64) time.Duration {
	return time.Duration(unix*int64(time.Second) - h.began.UnixNano())
}

// unix is the Unix second in which d lies.
func (h *history) unix(d time.Duration) int64 { return h.began.Add(d).Unix() }

// write adds a line. The caller holds mu.
func (h *history) write(kind string, event any) {
	line, err := json.Marshal(map[string]any{kind: event})
	if err == nil && h.file != nil {
		_, err = h.file.Write(append(line, '\n'))
	}
	if h.err == nil {
		h.err = err
	}
}

func (h *history) addTxn(t *txn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.txns = append(h.txns, t)
	h.write("transaction", t)
}

func (h *history) addMessage(m *message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.campaigns[m.Number] = m
	h.write("message", m)
}

func (h *history) addFault(f *fault) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = append(h.faults, f)
	h.write("fault", f)
}

// notef adds anything else that helps to read the history.
func (h *history) notef(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.write("note", map[string]any{"at": h.now(), "text": fmt.Sprintf(format, args...)})
}

// lastStart is the latest start of a campaign among those that begin before
// limit, as a Unix second.
func (h *history) lastStart(limit time.Time) int64 {
	last := int64(0)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.campaigns {
		if m.Fields != nil && m.Fields.Start < limit.Unix() {
			last = max(last, m.Fields.Start)
		}
	}
	return last
}

func (h *history) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.file.Close()
	h.file = nil
	if h.err != nil {
		err = h.err
	}
	if err != nil {
		return fmt.Errorf("write history: %w", err)
	}
	return nil
}
