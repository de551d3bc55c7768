package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Two daemons with one slot, on cloned machines say, would drop each other's slot for
// a snapshot of their own, again and again: while a snapshot is copied nobody holds
// the slot. So a mirror that touches the slot holds an advisory lock of the slot's
// name, on a connection of its own that outlives sessions. The second mirror waits
// while the first may be gone, and halts once it sees that the first lives.
//
// Every role that may connect can take an advisory lock. A role that is another one
// and may not replicate cannot be a mirror; its lock is passed over.

const (
	// beatEvery is how often the holder runs a statement to show that it lives.
	beatEvery = time.Second
	// secondAlive is how long another holder must be seen alive before it counts as
	// a second daemon: an old daemon that drains during a deployment takes so long.
	secondAlive = 10 * time.Second
	// hiddenAlive is secondAlive for a holder whose statements are hidden from the
	// role, so that a dead one looks alive: longer than TCP keepalives take.
	hiddenAlive = 2 * time.Minute
	// holderPoll is the time between two looks whether the other holder is gone.
	holderPoll = 500 * time.Millisecond
)

// SlotLock holds the slot's advisory lock on a connection of its own.
type SlotLock struct {
	db     *DB
	notify LockObserver
	alive  time.Duration // secondAlive; less in tests

	mu   sync.Mutex // guards below
	conn *pgx.Conn  // nil: the lock is not held
	pid  int32      // of its backend, as the backend reports it: a pooler has other numbers
	warn time.Time  // of the last warning about a lock that is passed over
	// second: another daemon has the lock, as far as is known.
	second bool
}

// LockObserver receives reports of waits for another holder of the lock.
type LockObserver interface {
	// LockHeld reports the holder that the mirror waits for: at the begin of the
	// wait, and whenever another holder has taken over.
	LockHeld(by *SlotHeldError)
	// LockWaitEnded reports the end of the wait, whatever came of it.
	LockWaitEnded()
}

// NewSlotLock returns the lock of db's slot, which is not taken yet. alive is how
// long a second holder must be seen alive before it counts as one; 0: secondAlive.
func NewSlotLock(db *DB, notify LockObserver, alive time.Duration) *SlotLock {
	return &SlotLock{db: db, notify: notify, alive: cmp.Or(alive, secondAlive)}
}

// SecondSeen reports whether another daemon has the lock, as far as is known.
func (g *SlotLock) SecondSeen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.second
}

// StartHeartbeat shows from time to time that this daemon lives, until stop, which
// releases the lock.
func (g *SlotLock) StartHeartbeat(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var beats sync.WaitGroup
	beats.Go(func() {
		for Sleep(ctx, beatEvery) {
			g.sendHeartbeat(ctx)
		}
	})
	return func() {
		cancel()
		beats.Wait()
		g.mu.Lock()
		defer g.mu.Unlock()
		g.closeLocked()
	}
}

// sendHeartbeat runs a statement. A connection that fails is given up: the lock is
// gone with it, and the session's next look takes the lock again.
func (g *SlotLock) sendHeartbeat(ctx context.Context) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	if _, err := g.conn.Exec(ctx, "SELECT 1"); err != nil {
		g.closeLocked()
	}
}

// closeLocked ends the connection.
func (g *SlotLock) closeLocked() {
	if g.conn != nil {
		CloseConn(g.conn.PgConn())
		g.conn = nil
	}
}

// lockHolder is the backend that holds the slot's advisory lock.
type lockHolder struct {
	by      SlotHeldError
	mirrors bool      // its role is the mirror's, or may replicate
	active  time.Time // the time when it last began or ended a statement; zero: hidden
}

// Hold makes sure that this mirror holds the lock on the server of sql. It waits
// for another holder that may be gone, and returns a *halt.Error where the other
// holder lives.
func (g *SlotLock) Hold(ctx context.Context, sql *pgx.Conn) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var first *lockHolder // the holder that the mirror waits for
	var since time.Time
	defer func() {
		if first != nil {
			g.notify.LockWaitEnded()
		}
	}()
	for {
		h, err := g.readLockHolder(ctx, sql)
		if err != nil {
			return err
		}
		switch {
		case h != nil && g.conn != nil && h.by.PID == g.pid:
			g.second = false
			return nil
		case h == nil:
			g.closeLocked() // the connection leads to another server
			if err := g.tryLocked(ctx, sql); err != nil || g.conn != nil {
				g.second = g.second && err != nil
				return err
			}
		case h.by.App == g.db.cfg.ApplicationName:
			if err := g.db.endLeftoverBackend(ctx, sql, h.by.PID, "client backend"); err != nil {
				return err
			}
		case !h.mirrors:
			g.warnPassedOverLocked(h)
			return nil
		case first == nil || first.by.PID != h.by.PID:
			first, since, g.second = h, time.Now(), true
			g.notify.LockHeld(&h.by)
			g.db.log.Warn("another daemon uses the replication slot; waiting for its end", "slot", h.by.Slot, "pid", h.by.PID,
				"application_name", h.by.App, "role", h.by.Role, "client_addr", h.by.Address)
		case g.isAlive(first, h, time.Since(since)):
			return h.haltSecondDaemon()
		}
		if !Sleep(ctx, holderPoll) {
			return ctx.Err()
		}
	}
}

// isAlive reports whether the holder lives: first is its state when it was seen
// first, now the present one.
func (g *SlotLock) isAlive(first, now *lockHolder, while time.Duration) bool {
	if now.active.IsZero() {
		return while >= hiddenAlive
	}
	return while >= g.alive && now.active.After(first.active)
}

// haltSecondDaemon is the halt of the daemon that came second.
func (h *lockHolder) haltSecondDaemon() *HaltError {
	return NewHalt("give each daemon a slot of its own (source.slot) or stop the other one",
		"slot %s is in use by another daemon: PID %d (application_name %q, role %s, client address %s)", h.by.Slot, h.by.PID, h.by.App, h.by.Role, h.by.Address)
}

// warnPassedOverLocked warns, now and then, of a lock that protects nothing.
func (g *SlotLock) warnPassedOverLocked(h *lockHolder) {
	if time.Since(g.warn) < time.Minute {
		return
	}
	g.warn = time.Now()
	g.db.log.Warn("somebody who cannot be a mirror holds the slot's advisory lock; the slot is used without it, and a second daemon would not be noticed",
		"slot", h.by.Slot, "pid", h.by.PID, "application_name", h.by.App, "role", h.by.Role, "client_addr", h.by.Address)
}

// LockKey is the key of a slot's advisory lock.
func LockKey(slot string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte("dinnerbell slot " + slot)) // never fails
	return int64(h.Sum64())
}

// tryLocked tries to take the lock on a new connection, which must lead to the
// server of sql. It leaves conn nil if somebody was faster.
func (g *SlotLock) tryLocked(ctx context.Context, sql *pgx.Conn) error {
	conn, err := g.db.DialSQL(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	var taken bool
	var pid int32
	err = conn.QueryRow(ctx, `SELECT pg_catalog.pg_try_advisory_lock($1), pg_catalog.pg_backend_pid()`, LockKey(g.db.cfg.Slot)).Scan(&taken, &pid)
	if SQLState(err) == CodeInsufficientPrivilege {
		err = NewHalt("GRANT EXECUTE ON FUNCTION pg_catalog.pg_try_advisory_lock(bigint) TO "+g.db.QuotedRole(), "the slot cannot be guarded against a second daemon: %v", err)
	}
	if err == nil && taken {
		var h *lockHolder
		if h, err = g.readLockHolder(ctx, sql); err == nil && (h == nil || h.by.PID != pid) {
			err = errors.New("two connections of source.url lead to different servers")
		}
	}
	if err != nil || !taken {
		CloseConn(conn.PgConn())
	} else {
		g.conn, g.pid = conn, pid
	}
	if err != nil {
		return fmt.Errorf("guard slot %s: %w", g.db.cfg.Slot, err)
	}
	return nil
}

// readLockHolder returns the holder of the slot's advisory lock; nil: nobody holds
// it. A holder that may be a mirror goes first, for a lock can be shared.
func (g *SlotLock) readLockHolder(ctx context.Context, sql *pgx.Conn) (*lockHolder, error) {
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	h := &lockHolder{by: SlotHeldError{Slot: g.db.cfg.Slot}}
	var active *time.Time
	err := sql.QueryRow(ctx, `
		SELECT l.pid, coalesce(a.application_name, ''), coalesce(a.usename::text, ''),
		       coalesce(host(a.client_addr), CASE a.client_port WHEN -1 THEN 'local' ELSE 'hidden' END),
		       coalesce(a.usename = current_user OR r.rolreplication OR r.rolsuper, false) AS mirrors, a.state_change
		FROM pg_catalog.pg_locks l
		LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
		LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid
		WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
		  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
		  AND l.classid = ($1::bigint >> 32 & 4294967295)::oid AND l.objid = ($1::bigint & 4294967295)::oid
		ORDER BY mirrors DESC, l.pid LIMIT 1`, LockKey(g.db.cfg.Slot)).
		Scan(&h.by.PID, &h.by.App, &h.by.Role, &h.by.Address, &h.mirrors, &active)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil //nolint:nilnil // a lock that is free is an answer
	}
	if err != nil {
		return nil, fmt.Errorf("read lock holder of slot %s: %w", g.db.cfg.Slot, err)
	}
	if active != nil {
		h.active = *active
	}
	return h, nil
}
