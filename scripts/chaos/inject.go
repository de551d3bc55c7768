package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"dinnerbell/internal/testenv"
	"dinnerbell/scripts/chaos/history"
	"dinnerbell/scripts/chaos/network"
)

// injector carries out a schedule. Faults overlap as they come, but what works
// on one process or one link waits for its predecessor there.
type injector struct {
	r         *round
	postgres  sync.Mutex
	broker    sync.Mutex
	slow      sync.Mutex
	retention sync.Mutex
}

// run does the schedule. When ctx ends, faults that last are ended; run returns
// when all are, and everything stands again.
func (in *injector) run(ctx context.Context, list []*history.Fault) error {
	var wg sync.WaitGroup
	errs := make(chan error, len(list))
	for _, f := range list {
		wg.Go(func() {
			if !testenv.Pause(ctx, f.At-in.r.h.Now()) && ctx.Err() != nil {
				return
			}
			if err := in.inject(ctx, f); err != nil {
				errs <- fmt.Errorf("inject %s: %w", f.Kind, err)
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

func (in *injector) inject(ctx context.Context, f *history.Fault) error {
	d := in.r.daemons[f.Daemon]
	switch f.Kind {
	case faultPostgres:
		return in.hold(ctx, &in.postgres, f, func() error { return in.killPostgres(ctx, f) })
	case faultKafka, faultKfake:
		return in.hold(ctx, &in.broker, f, in.killBroker)
	case faultCommit:
		d.links.CommitTrap.Armed.Add(1)
	case faultEndTxn:
		d.links.EndTxnTrap.Armed.Add(1)
	case faultSlow:
		return in.hold(ctx, &in.slow, f, func() error { return in.slowCommits(ctx, f) })
	case faultRetention:
		return in.hold(ctx, &in.retention, f, func() error { return in.deleteCampaigns(ctx) })
	case faultBarrier:
		return in.shutBarrier(ctx, f, d)
	case faultDDL:
		return in.hold(ctx, &d.operated, f, func() error { return in.changeTable(ctx, f, d) })
	case faultRebuild, faultVerify, faultCheckpoint, faultReplay, faultResolve: // not under d.busy: it is what is broken meanwhile
		return in.hold(ctx, &d.operated, f, func() error { return in.operate(ctx, f, d) })
	case faultKill, faultPause, faultZombie, faultWipe, faultRestore, faultCopy, faultDamage:
		return in.hold(ctx, &d.busy, f, func() error { return in.process(ctx, f, d) })
	default:
		l := d.links.Proxies[f.Link]
		return in.hold(ctx, &l.Busy, f, func() error { return in.link(ctx, f, l) })
	}
	return nil
}

// hold does a fault when its target is free, unless the time for faults is over
// by then.
func (in *injector) hold(ctx context.Context, busy *sync.Mutex, f *history.Fault, do func() error) error {
	busy.Lock()
	defer busy.Unlock()
	if ctx.Err() != nil {
		return nil
	}
	f.Began = in.r.h.Now()
	err := do()
	f.Ended = in.r.h.Now()
	if errors.Is(err, errSkipped) {
		return nil
	}
	in.r.h.AddFault(f)
	return err
}

// errSkipped: the fault had nothing to work on; it does not count.
var errSkipped = errors.New("nothing to work on")

func (in *injector) killPostgres(ctx context.Context, f *history.Fault) error {
	if err := in.r.w.postgres.Kill(); err != nil {
		return err
	}
	testenv.Pause(ctx, f.Length)
	if err := in.r.w.postgres.Start(context.WithoutCancel(ctx)); err != nil {
		in.r.w.lost(err)
		return err
	}
	return nil
}

func (in *injector) killBroker() error {
	if err := in.r.w.broker.crash(); err != nil {
		in.r.w.lost(err)
		return err
	}
	if err := in.r.w.broker.Start(context.Background()); err != nil {
		in.r.w.lost(err)
		return err
	}
	return nil
}

// process is what happens to a daemon's process and its state.dir.
func (in *injector) process(ctx context.Context, f *history.Fault, d *daemon) error {
	switch f.Kind {
	case faultKill:
		d.kill()
		if f.Leave {
			in.evict(d)
		}
		testenv.Pause(ctx, f.Length)
		return d.start()
	case faultPause:
		d.freeze()
		testenv.Pause(ctx, f.Length)
		d.thaw()
	case faultZombie:
		return in.zombie(ctx, f, d)
	case faultWipe:
		d.kill()
		if err := d.wipeState(); err != nil {
			return err
		}
		return d.start()
	case faultDamage:
		d.kill()
		what, err := d.damageState(rand.New(rand.NewPCG(f.Draw, 0))) //nolint:gosec // drawn from the seed
		if what != "" {
			in.r.h.Notef("%s: %s", d.name, what)
		}
		return errors.Join(err, d.start())
	case faultRestore:
		d.kill()
		restored, err := d.restoreState()
		if err != nil {
			return err
		}
		if err := d.start(); err != nil {
			return err
		}
		if !restored {
			return errSkipped
		}
	case faultCopy:
		d.freeze()
		defer d.thaw()
		if err := d.copyState(); err != nil {
			in.r.h.Notef("%v", err) // state.dir is not there yet
		}
		return errSkipped
	}
	return nil
}

// takeoverLimit is how long a zombie waits for another daemon to take its lanes.
const takeoverLimit = 5 * time.Second

// zombie freezes a daemon, has the group give its lanes to the other one, and
// lets it go on in the belief that they are its own. The group is told by its
// administrator that the member is gone: its session would run out only after
// ten seconds.
func (in *injector) zombie(ctx context.Context, f *history.Fault, d *daemon) error {
	other := in.r.daemons[1-f.Daemon]
	standIn := in.r.w.opts.daemons == 1
	if standIn {
		if err := other.start(); err != nil {
			return err
		}
	}
	if !d.freeze() {
		return errSkipped
	}
	in.evict(d)
	limit, cancel := context.WithTimeout(ctx, takeoverLimit)
	for !in.ownsAll(limit, other) && testenv.Pause(limit, 50*time.Millisecond) {
	}
	taken := limit.Err() == nil
	cancel()
	in.r.h.Notef("%s is a zombie; %s has taken over: %v", d.name, other.name, taken)
	testenv.Pause(ctx, f.Length)
	d.thaw()
	if standIn {
		testenv.Pause(ctx, 500*time.Millisecond)
		if err := other.terminate(); err != nil {
			return err
		}
		in.evict(other)
	}
	if !taken {
		f.Kind = faultPause // that is all it came to
	}
	return nil
}

func (in *injector) ownsAll(ctx context.Context, d *daemon) bool {
	s, err := d.ask(ctx)
	if err != nil || len(s.Lanes) != history.Partitions {
		return false
	}
	for _, l := range s.Lanes {
		if l.State != "running" {
			return false
		}
	}
	return true
}

// evict removes the daemon's member from the group, as an administrator may
// (kafka-consumer-groups --remove-members). Failing that, the session runs out.
func (in *injector) evict(d *daemon) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	adm := kadm.NewClient(in.r.admin)
	groups, err := adm.DescribeGroups(ctx, in.r.group)
	if err != nil {
		in.r.h.Notef("describe group: %v", err)
		return
	}
	for _, g := range groups {
		for _, m := range g.Members {
			if m.InstanceID == nil || !strings.HasSuffix(*m.InstanceID, in.r.slot(d)) {
				continue
			}
			if _, err := adm.LeaveGroup(ctx, kadm.LeaveGroup(in.r.group).InstanceIDs(*m.InstanceID)); err != nil {
				in.r.h.Notef("remove %s from the group: %v", *m.InstanceID, err)
			}
		}
	}
}

func (in *injector) link(ctx context.Context, f *history.Fault, l *network.Link) error {
	switch f.Kind {
	case f.Link + "." + cut:
		return l.Cut(ctx, f.Length)
	case f.Link + "." + delay:
		return l.Delay(ctx, f.Length, f.Millis)
	default:
		return l.HalfOpen(ctx, f.Length, f.Direction)
	}
}

// heal disarms the traps, lets every daemon run, and counts the answers that
// were lost.
func (in *injector) heal() error {
	for i, d := range in.r.daemons {
		d.links.CommitTrap.Armed.Store(0)
		d.links.EndTxnTrap.Armed.Store(0)
		for range d.links.CommitTrap.Sprung.Swap(0) {
			in.r.h.AddFault(&history.Fault{Kind: faultCommit, Daemon: i})
		}
		for range d.links.EndTxnTrap.Sprung.Swap(0) {
			in.r.h.AddFault(&history.Fault{Kind: faultEndTxn, Daemon: i})
		}
		if i < in.r.w.opts.daemons {
			d.thaw()
			if err := d.start(); err != nil {
				return err
			}
		}
	}
	return nil
}
