package history

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// Log holds the events of a round. Times are durations since the round's
// beginning. Each event is also a JSON line in the round's folder.
type Log struct {
	Began time.Time
	Life  time.Duration // of a campaign that does not end during the round, see CampaignLife

	mu           sync.Mutex // guards the fields below
	file         *os.File
	err          error // the first error of a write to file
	Transactions []*Transaction
	Messages     map[int64]*Message // by number
	Faults       []*Fault           // faults that were carried out
	campaigns    map[[2]string]bool // (campaign, restaurant) of the messages so far
	changes      int                // changes of rows in committed transactions
}

// NewLog creates the file of a round that begins now and whose campaigns live for life.
func NewLog(path string, life time.Duration) (*Log, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("make history: %w", err)
	}
	return &Log{Began: time.Now(), Life: life, file: f, Messages: map[int64]*Message{}, campaigns: map[[2]string]bool{}}, nil
}

// Now returns the time since the round's beginning.
func (h *Log) Now() time.Duration { return time.Since(h.Began) }

// AtUnix returns the moment at which a Unix second begins.
func (h *Log) AtUnix(unix int64) time.Duration {
	return time.Duration(unix*int64(time.Second) - h.Began.UnixNano())
}

// UnixAt returns the Unix second that contains the moment d.
func (h *Log) UnixAt(d time.Duration) int64 { return h.Began.Add(d).Unix() }

// writeLocked adds a line; the caller holds mu.
func (h *Log) writeLocked(kind string, event any) {
	line, err := json.Marshal(map[string]any{kind: event})
	if err == nil && h.file != nil {
		_, err = h.file.Write(append(line, '\n'))
	}
	if h.err == nil {
		h.err = err
	}
}

// AddTransaction adds a transaction whose outcome is known.
func (h *Log) AddTransaction(t *Transaction) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Transactions = append(h.Transactions, t)
	if t.Committed {
		h.changes += len(t.Changes)
	}
	h.writeLocked("transaction", t)
}

// AddMessage adds a message that was produced.
func (h *Log) AddMessage(m *Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Messages[m.Number] = m
	if m.Fields != nil && !m.Aborted {
		h.campaigns[[2]string{m.Fields.Campaign, m.Fields.Restaurant}] = true
	}
	h.writeLocked("message", m)
}

// AddFault adds a fault that was carried out.
func (h *Log) AddFault(f *Fault) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Faults = append(h.Faults, f)
	h.writeLocked("fault", f)
}

// Notef adds a note for the reader of the history.
func (h *Log) Notef(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writeLocked("note", map[string]any{"at": h.Now(), "text": fmt.Sprintf(format, args...)})
}

// CountWork returns how many different (campaign, restaurant) were sent so far, and how
// many rows the committed transactions changed.
func (h *Log) CountWork() (campaigns, changes int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.campaigns), h.changes
}

// LastStart returns the latest start of all campaigns that start before limit,
// as a Unix second.
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

// Close closes the file and returns the first error of writing it.
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
