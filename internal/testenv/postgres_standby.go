package testenv

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
)

// Standby makes a physical standby of p in dir; settings override p's. p must
// be stopped, since Standby copies its files. The caller then starts both, p
// first. slot is an existing physical slot on p.
//
// It copies the files because the downloaded programs have no pg_basebackup.
func (p *Postgres) Standby(ctx context.Context, dir, slot string, settings map[string]string) (*Postgres, error) {
	if p.child.Running() {
		return nil, errors.New("make standby: the primary runs")
	}
	s := &Postgres{opts: p.opts, user: p.user}
	s.opts.Dir = dir
	var err error
	if s.opts.Port, err = FreePort(); err != nil {
		return nil, err
	}
	s.opts.Settings = maps.Clone(p.opts.Settings)
	maps.Copy(s.opts.Settings, settings)
	s.opts.Settings["primary_conninfo"] = fmt.Sprintf("host=127.0.0.1 port=%d user=postgres dbname=postgres application_name=%s", p.opts.Port, slot)
	s.opts.Settings["primary_slot_name"] = slot
	s.opts.Settings["hot_standby"] = "on"
	s.opts.Settings["hot_standby_feedback"] = "on"
	if err := s.copyFrom(p); err != nil {
		return nil, fmt.Errorf("make standby: %w", err)
	}
	return s, s.initCluster(ctx)
}

// copyFrom copies a data directory without the slots, which belong to the
// primary.
func (p *Postgres) copyFrom(primary *Postgres) error {
	if err := os.MkdirAll(p.opts.Dir, 0o755); err != nil {
		return err
	}
	if err := os.CopyFS(p.dataDir(), os.DirFS(primary.dataDir())); err != nil {
		return err
	}
	slots := filepath.Join(p.dataDir(), "pg_replslot")
	if err := errors.Join(os.RemoveAll(slots), os.Mkdir(slots, 0o700), os.Chmod(p.dataDir(), 0o700)); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(p.dataDir(), "standby.signal"), nil, 0o600)
}

// Backup copies the data directory of a stopped server; Restore puts the copy
// back.
func (p *Postgres) Backup(dir string) error {
	if p.child.Running() {
		return errors.New("take backup: the server runs")
	}
	return os.CopyFS(dir, os.DirFS(p.dataDir()))
}

// Restore puts the copy of Backup back. With recovery, the next start recovers
// from the backup and begins a new timeline.
func (p *Postgres) Restore(dir string, recovery bool) error {
	if p.child.Running() {
		return errors.New("restore backup: the server runs")
	}
	err := errors.Join(os.RemoveAll(p.dataDir()), os.CopyFS(p.dataDir(), os.DirFS(dir)), os.Chmod(p.dataDir(), 0o700))
	if err == nil && recovery {
		p.Set("restore_command", "false") // no archive exists
		err = os.WriteFile(filepath.Join(p.dataDir(), "recovery.signal"), nil, 0o600)
	}
	if err == nil && p.user != nil {
		err = p.user.giveFolder(p.opts.Dir)
	}
	return err
}
