package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"text/tabwriter"
	"time"

	"dinnerbell/cdc"
	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/control"
	"dinnerbell/cmd/dinnerbell/internal/daemon"
	"dinnerbell/cmd/dinnerbell/internal/logging"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

// checkpointCmd groups the commands about saved states.
type checkpointCmd struct {
	Create  checkpointCreateCmd  `cmd:"" help:"Save the present local state, with or without a running daemon."`
	List    checkpointListCmd    `cmd:"" help:"List the saved states, and whether the slot still covers each."`
	Restore checkpointRestoreCmd `cmd:"" help:"Replace the present local state by a saved one. The daemon must not run."`
}

// savedState is a checkpoint as the commands show it.
type savedState struct {
	ID            string          `json:"id"`
	Made          time.Time       `json:"made"`
	AgeSeconds    float64         `json:"age_seconds"`
	Cause         state.Cause     `json:"cause"`
	LSN           id.LSN          `json:"lsn"`
	Subscriptions int64           `json:"subscriptions"`
	Bytes         int64           `json:"bytes"`
	OwnBytes      int64           `json:"own_bytes"` // of files without another name: the space that removing the checkpoint would free
	NextOffsets   map[int32]int64 `json:"next_offsets"`
	Writer        string          `json:"writer"`
	// Covered reports whether the slot still holds all WAL since the checkpoint, so
	// that a restored state goes on without a snapshot; null if unknown. Reason is
	// why it is false or null.
	Covered *bool  `json:"covered"`
	Reason  string `json:"reason,omitempty"`
}

func newSavedState(dir string, m *state.Manifest) savedState {
	return savedState{
		ID: m.ID, Made: m.Made, AgeSeconds: time.Since(m.Made).Seconds(), Cause: m.Cause, LSN: m.EndLSN,
		Subscriptions: m.Subscriptions, Bytes: m.Bytes(), OwnBytes: ownBytes(dir, m), NextOffsets: m.NextOffsets, Writer: m.Writer,
	}
}

// ownBytes counts the files that have no other name.
func ownBytes(dir string, m *state.Manifest) int64 {
	var n int64
	for name, size := range m.Files {
		info, err := os.Stat(filepath.Join(m.Folder(dir), name))
		if err != nil {
			continue // removed in the meantime
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Nlink == 1 {
			n += size
		}
	}
	return n
}

// setCoverage fills in whether the slot covers the checkpoint. judge is nil if
// Postgres could not be asked, because of err.
func (s *savedState) setCoverage(m *state.Manifest, judge func(state.Source, id.LSN) string, err error) {
	if judge == nil {
		s.Reason = logging.Line(err.Error())
		return
	}
	s.Reason = judge(m.Source, m.EndLSN)
	covered := s.Reason == ""
	s.Covered = &covered
}

// coverageText returns Covered and Reason as text.
func (s *savedState) coverageText() string {
	switch {
	case s.Covered == nil:
		return "not known"
	case *s.Covered:
		return "yes"
	}
	return "no: " + s.Reason
}

// checkpointCreateCmd saves the local state.
type checkpointCreateCmd struct {
	JSON bool `help:"As JSON."`
}

// Help shows how it is used.
func (*checkpointCreateCmd) Help() string {
	return `Example:
  dinnerbell checkpoint create`
}

// Run asks the daemon for a checkpoint. Without a daemon it makes the checkpoint
// itself; the lock on state.dir keeps the two apart.
func (c *checkpointCreateCmd) Run(ctx context.Context, a *invocation) error {
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	began := time.Now()
	shown := terminal.NewProgress(a.stderr, "")
	shown.Spin("checkpoint")
	var saved savedState
	err = control.Do(ctx, cfg.State.Dir, "checkpoint", nil, control.ReplyHandler{Result: &saved})
	if errors.Is(err, control.ErrNoDaemon) {
		saved, err = c.createOffline(a, cfg)
	}
	shown.Finish()
	if err != nil {
		return fmt.Errorf("make checkpoint: %w", err)
	}
	if c.JSON {
		return printJSON(a, saved)
	}
	_, err = fmt.Fprintf(a.stdout, "%s: %s subscriptions at %s, in %s\n", saved.ID, terminal.Thousands(saved.Subscriptions), saved.LSN,
		time.Since(began).Round(time.Millisecond))
	return err
}

func (c *checkpointCreateCmd) createOffline(a *invocation, cfg *config.Config) (saved savedState, err error) {
	if _, err := os.Stat(cfg.State.Dir); err != nil {
		return saved, fmt.Errorf("no local state: %w", err)
	}
	store, err := daemon.OpenState(cfg, a.newLogger(cfg), version, nil)
	if err != nil {
		return saved, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	m, err := store.Checkpoint(state.CauseAsked, nil)
	if err != nil {
		return saved, err
	}
	return newSavedState(cfg.State.Dir, m), nil
}

// saveCheckpoint is the daemon's side: an Action. It waits for the end of a large
// transaction that is being applied.
func saveCheckpoint(ctx context.Context, e *daemon.Engine, _ *control.Call) (any, error) {
	for {
		m, err := e.Store.Checkpoint(state.CauseAsked, e.NextOffsets())
		if _, loaded := e.Store.Source(); !errors.Is(err, state.ErrNotWhole) || !loaded {
			if err != nil {
				return nil, err
			}
			return newSavedState(e.Config.State.Dir, m), nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// checkpointListCmd lists the checkpoints.
type checkpointListCmd struct {
	JSON bool `help:"As JSON."`
}

// Help shows how it is used.
func (*checkpointListCmd) Help() string {
	return `Example:
  dinnerbell checkpoint list --json`
}

// Run reads the folder, with or without a running daemon. It asks Postgres whether
// the slot covers each checkpoint.
func (c *checkpointListCmd) Run(ctx context.Context, a *invocation) error {
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	var list []state.Manifest
	var damaged error
	read := func() error {
		list, damaged = state.ListCheckpoints(cfg.State.Dir)
		return nil
	}
	judge, unknown := cdc.Coverage(ctx, daemon.SourceConfig(cfg, a.newLogger(cfg)).Source(), read)
	if unknown != nil {
		_ = read()
	}
	saved := []savedState{} // never null
	for i := range list {
		s := newSavedState(cfg.State.Dir, &list[i])
		s.setCoverage(&list[i], judge, unknown)
		saved = append(saved, s)
	}
	if c.JSON {
		err = printJSON(a, saved)
	} else {
		err = printSaved(a.stdout, saved)
		if unknown != nil && len(saved) > 0 {
			_, _ = fmt.Fprintf(a.messages, "dinnerbell: whether the slot covers them is not known: %s\n", cfg.Hide(logging.Line(unknown.Error()))) // nowhere to report a failing stderr
		}
	}
	return errors.Join(err, damaged)
}

func printSaved(out io.Writer, saved []savedState) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "id\tage\tmade for\tlsn\tsubscriptions\tsize\tof its own\tcovered by the slot") // Flush reports errors
	for i := range saved {
		s := &saved[i]
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.ID, ageText(s.Made), s.Cause, s.LSN,
			terminal.Thousands(s.Subscriptions), terminal.Bytes(s.Bytes), terminal.Bytes(s.OwnBytes), s.coverageText())
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write list: %w", err)
	}
	return nil
}

// ageText returns the time since then.
func ageText(then time.Time) string { return time.Since(then).Round(time.Second).String() }

// checkpointRestoreCmd replaces the local state by a checkpoint.
type checkpointRestoreCmd struct {
	ID   exactID `arg:"" help:"A checkpoint as dinnerbell checkpoint list shows it."`
	JSON bool    `help:"As JSON."`
}

// restoredState is the result of a restore.
type restoredState struct {
	savedState

	// Replaced is the folder that the former state was moved to; "" without a
	// former state.
	Replaced string `json:"replaced,omitempty"`
}

// Help shows how it is used.
func (*checkpointRestoreCmd) Help() string {
	return `Stop the daemon first; start it again afterwards.

Example:
  dinnerbell checkpoint restore ID`
}

// Run restores the checkpoint. The next `dinnerbell run` goes on from there by
// itself.
func (c *checkpointRestoreCmd) Run(ctx context.Context, a *invocation) error {
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	m, err := state.ReadManifest(cfg.State.Dir, string(c.ID))
	if errors.Is(err, state.ErrNoCheckpoint) {
		return fmt.Errorf("%w; see: dinnerbell checkpoint list", err)
	}
	if err != nil {
		return err
	}
	log := a.newLogger(cfg)
	shown := terminal.NewProgress(a.stderr, "")
	shown.Spin("reading all rows")
	m, replaced, err := state.Restore(ctx, cfg.State.Dir, m.ID, daemon.StateOptions(cfg, log, version))
	shown.Finish()
	if err != nil {
		return err
	}
	r := restoredState{savedState: newSavedState(cfg.State.Dir, m)}
	if replaced != "" {
		r.Replaced = filepath.Join(cfg.State.Dir, replaced)
	}
	judge, unknown := cdc.Coverage(ctx, daemon.SourceConfig(cfg, log).Source(), func() error { return nil })
	r.setCoverage(m, judge, unknown)
	if c.JSON {
		return printJSON(a, r)
	}
	return r.printResult(a.stdout)
}

func (r *restoredState) printResult(out io.Writer) error {
	text := fmt.Sprintf("restored %s: %s subscriptions at %s\n", r.ID, terminal.Thousands(r.Subscriptions), r.LSN)
	switch {
	case r.Covered == nil:
		text += "whether the source still has what came after it is not known (" + r.Reason + "); dinnerbell run finds out, and takes a new snapshot if it has not\n"
	case *r.Covered:
		text += "the slot still has all that came after it: dinnerbell run goes on from there\n"
	default:
		text += "the source no longer has all that came after it: dinnerbell run takes a new snapshot of the subscriptions, and campaigns wait for it (" + r.Reason + ")\n"
	}
	if r.Replaced != "" {
		text += "the state that was there is in " + r.Replaced + "; the daemon removes it when it has caught up and found all rows good\n"
	}
	_, err := io.WriteString(out, text)
	return err
}
