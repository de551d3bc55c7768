package history

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// Log is what was done in a round, in one time: the duration since its
// beginning. Each event is also a JSON line in the round's folder.
type Log struct {
	Began time.Time

	mu           sync.Mutex // guards what is below
	file         *os.File
	err          error // of writing file
	Transactions []*Transaction
	Messages     map[int64]*Message // by number
	Faults       []*Fault           // those that were done
}

func NewLog(path string) (*Log, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("make history: %w", err)
	}
	return &Log{Began: time.Now(), file: f, Messages: map[int64]*Message{}}, nil
}

func (h *Log) Now() time.Duration { return time.Since(h.Began) }

// AtUnix is the moment at which a Unix second begins.
func (h *Log) AtUnix(unix int64) time.Duration {
	return time.Duration(unix*int64(time.Second) - h.Began.UnixNano())
}

// UnixAt is the Unix second in which d lies.
func (h *Log) UnixAt(d time.Duration) int64 { return h.Began.Add(d).Unix() }

// writeLocked adds a line. The caller holds mu.
func (h *Log) writeLocked(kind string, event any) {
	line, err := json.Marshal(map[string]any{kind: event})
	if err == nil && h.file != nil {
		_, err = h.file.Write(append(line, '\n'))
	}
	if h.err == nil {
		h.err = err
	}
}

func (h *Log) AddTransaction(t *Transaction) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Transactions = append(h.Transactions, t)
	h.writeLocked("transaction", t)
}

func (h *Log) AddMessage(m *Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Messages[m.Number] = m
	h.writeLocked("message", m)
}

func (h *Log) AddFault(f *Fault) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Faults = append(h.Faults, f)
	h.writeLocked("fault", f)
}

// Notef adds anything else that helps to read the history.
func (h *Log) Notef(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writeLocked("note", map[string]any{"at": h.Now(), "text": fmt.Sprintf(format, args...)})
}

// LastStart is the latest start of a campaign among those that begin before
// limit, as a Unix second.
func (h *Log) LastStart(limit time.Time) int64 {
	last := int64(0)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.Messages {
		if m.Fields != nil && m.Fields.Start < limit.Unix() {
			last = max(last, m.Fields.Start)
		}
	}
	return last
}

func (h *Log) Close() error {
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
