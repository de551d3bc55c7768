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

// faultInjector carries out a schedule. Faults overlap, but two faults on one
// process or one link run one after the other.
type faultInjector struct {
	round     *round
	postgres  sync.Mutex
	broker    sync.Mutex
	slow      sync.Mutex
	retention sync.Mutex
}

// runSchedule carries out the schedule. When ctx ends, lasting faults are ended. run
// returns when all faults are over and every process and link works again.
func (in *faultInjector) runSchedule(ctx context.Context, list []*history.Fault) error {
	var wg sync.WaitGroup
	errs := make(chan error, len(list))
	for _, f := range list {
		wg.Go(func() {
			if !testenv.Pause(ctx, f.At-in.round.log.Now()) && ctx.Err() != nil {
				return
			}
			if err := in.injectFault(ctx, f); err != nil {
				errs <- fmt.Errorf("inject %s: %w", f.Kind, err)
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

func (in *faultInjector) injectFault(ctx context.Context, f *history.Fault) error {
	d := in.round.daemons[f.Daemon]
	switch f.Kind {
	case faultPostgres:
		return in.whenFree(ctx, &in.postgres, f, func() error { return in.restartPostgres(ctx, f, in.round.servers.postgres.Kill) })
	case faultShutdown:
		return in.whenFree(ctx, &in.postgres, f, func() error { return in.restartPostgres(ctx, f, in.round.servers.postgres.Stop) })
	case faultKafka, faultKfake:
		return in.whenFree(ctx, &in.broker, f, func() error { return in.restartBroker(in.round.servers.broker.crashBroker) })
	case faultStop:
		return in.whenFree(ctx, &in.broker, f, func() error { return in.restartBroker(in.round.servers.broker.Stop) })
	case faultCommit:
		d.links.CommitTrap.Armed.Add(1)
	case faultEndTxn:
		d.links.EndTxnTrap.Armed.Add(1)
	case faultSlow:
		return in.whenFree(ctx, &in.slow, f, func() error { return in.slowCommits(ctx, f) })
	case faultRetention:
		return in.whenFree(ctx, &in.retention, f, func() error { return in.deleteCampaigns(ctx) })
	case faultBarrier:
		return in.shutBarrier(ctx, f, d)
	case faultDDL:
		return in.whenFree(ctx, &d.operated, f, func() error { return in.changeTable(ctx, f, d) })
	case faultRebuild, faultVerify, faultCheckpoint, faultReplay, faultResolve: // without d.busy: faults may hit a command
		return in.whenFree(ctx, &d.operated, f, func() error { return in.runCommand(ctx, f, d) })
	case faultKill, faultEnd, faultPause, faultZombie, faultWipe, faultRestore, faultCopy, faultDamage:
		return in.whenFree(ctx, &d.busy, f, func() error { return in.faultProcess(ctx, f, d) })
	default:
		l := d.links.Proxies[f.Link]
		return in.whenFree(ctx, &l.Busy, f, func() error { return in.faultLink(ctx, f, l) })
	}
	return nil
}

// whenFree carries out a fault as soon as its target is free, unless the time
// for faults is over by then.
func (in *faultInjector) whenFree(ctx context.Context, busy *sync.Mutex, f *history.Fault, do func() error) error {
	busy.Lock()
	defer busy.Unlock()
	if ctx.Err() != nil {
		return nil
	}
	f.Began = in.round.log.Now()
	err := do()
	f.Ended = in.round.log.Now()
	if errors.Is(err, errSkipped) {
		return nil
	}
	in.round.log.AddFault(f)
	return err
}

// errSkipped means that the fault had no target; the fault does not count.
var errSkipped = errors.New("nothing to work on")

func (in *faultInjector) restartPostgres(ctx context.Context, f *history.Fault, stop func() error) error {
	if err := stop(); err != nil {
		return err
	}
	testenv.Pause(ctx, f.Length)
	if err := in.round.servers.postgres.Start(context.WithoutCancel(ctx)); err != nil {
		in.round.servers.noteLost(err)
		return err
	}
	return nil
}

func (in *faultInjector) restartBroker(stop func() error) error {
	if err := stop(); err != nil {
		in.round.servers.noteLost(err)
		return err
	}
	if err := in.round.servers.broker.Start(context.Background()); err != nil {
		in.round.servers.noteLost(err)
		return err
	}
	return nil
}

// faultProcess carries out the faults of a daemon's process and state.dir.
func (in *faultInjector) faultProcess(ctx context.Context, f *history.Fault, d *daemonProcess) error {
	switch f.Kind {
	case faultKill:
		d.killProcess()
		if f.Leave {
			in.removeFromGroup(d)
		}
		testenv.Pause(ctx, f.Length)
		return d.startProcess()
	case faultEnd:
		if err := d.terminateProcess(); err != nil {
			return err
		}
		testenv.Pause(ctx, f.Length)
		return d.startProcess()
	case faultPause:
		d.freezeProcess()
		testenv.Pause(ctx, f.Length)
		d.thawProcess()
	case faultZombie:
		return in.makeZombie(ctx, f, d)
	case faultWipe:
		d.killProcess()
		if err := d.wipeState(); err != nil {
			return err
		}
		return d.startProcess()
	case faultDamage:
		d.killProcess()
		what, err := d.damageState(rand.New(rand.NewPCG(f.Draw, 0))) //nolint:gosec // drawn from the seed
		if what != "" {
			in.round.log.Notef("%s: %s", d.name, what)
		}
		return errors.Join(err, d.startProcess())
	case faultRestore:
		d.killProcess()
		restored, err := d.restoreState()
		if err != nil {
			return err
		}
		if err := d.startProcess(); err != nil {
			return err
		}
		if !restored {
			return errSkipped
		}
	case faultCopy:
		d.freezeProcess()
		defer d.thawProcess()
		if err := d.copyState(); err != nil {
			in.round.log.Notef("%v", err) // state.dir does not exist yet
		}
		return errSkipped
	}
	return nil
}

// takeoverLimit is how long a zombie waits until another daemon has its lanes.
const takeoverLimit = 5 * time.Second

// makeZombie freezes a daemon, lets the group give its lanes to the other
// daemon, and thaws the first one, which still believes that it owns the lanes.
// An administrative request removes the frozen member from the group, since its
// session would run out only after ten seconds.
func (in *faultInjector) makeZombie(ctx context.Context, f *history.Fault, d *daemonProcess) error {
	other := in.round.daemons[1-f.Daemon]
	standIn := in.round.servers.opts.daemons == 1
	if standIn {
		if err := other.startProcess(); err != nil {
			return err
		}
	}
	if !d.freezeProcess() {
		return errSkipped
	}
	in.removeFromGroup(d)
	limit, cancel := context.WithTimeout(ctx, takeoverLimit)
	for !in.ownsAll(limit, other) && testenv.Pause(limit, 50*time.Millisecond) {
	}
	taken := limit.Err() == nil
	cancel()
	in.round.log.Notef("%s is a zombie; %s has taken over: %v", d.name, other.name, taken)
	testenv.Pause(ctx, f.Length)
	d.thawProcess()
	if standIn {
		testenv.Pause(ctx, 500*time.Millisecond)
		if err := other.terminateProcess(); err != nil {
			return err
		}
		in.removeFromGroup(other)
	}
	if !taken {
		f.Kind = faultPause // no takeover happened: it was a pause
	}
	return nil
}

func (in *faultInjector) ownsAll(ctx context.Context, d *daemonProcess) bool {
	s, err := d.fetchStatus(ctx)
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

// removeFromGroup removes the daemon's member from the group, as
// kafka-consumer-groups --remove-members does. If the request fails, the
// session runs out.
func (in *faultInjector) removeFromGroup(d *daemonProcess) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	adm := kadm.NewClient(in.round.admin)
	groups, err := adm.DescribeGroups(ctx, in.round.group)
	if err != nil {
		in.round.log.Notef("describe group: %v", err)
		return
	}
	for _, g := range groups {
		for _, m := range g.Members {
			if m.InstanceID == nil || !strings.HasSuffix(*m.InstanceID, in.round.slotOf(d)) {
				continue
			}
			if _, err := adm.LeaveGroup(ctx, kadm.LeaveGroup(in.round.group).InstanceIDs(*m.InstanceID)); err != nil {
				in.round.log.Notef("remove %s from the group: %v", *m.InstanceID, err)
			}
		}
	}
}

func (in *faultInjector) faultLink(ctx context.Context, f *history.Fault, l *network.Link) error {
	switch f.Kind {
	case f.Link + "." + cut:
		return l.Cut(ctx, f.Length)
	case f.Link + "." + delay:
		l.Delay(ctx, f.Length, f.Millis)
	default:
		l.HalfOpen(ctx, f.Length, f.Direction)
	}
	return nil
}

// healAll disarms the traps, lets every daemon run, and counts the answers that
// the traps swallowed.
func (in *faultInjector) healAll() error {
	for i, d := range in.round.daemons {
		d.links.CommitTrap.Armed.Store(0)
		d.links.EndTxnTrap.Armed.Store(0)
		for range d.links.CommitTrap.Sprung.Swap(0) {
			in.round.log.AddFault(&history.Fault{Kind: faultCommit, Daemon: i})
		}
		for range d.links.EndTxnTrap.Sprung.Swap(0) {
			in.round.log.AddFault(&history.Fault{Kind: faultEndTxn, Daemon: i})
		}
		if i < in.round.servers.opts.daemons {
			d.thawProcess()
			if err := d.startProcess(); err != nil {
				return err
			}
		}
	}
	return nil
}
