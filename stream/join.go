package stream

import (
	"fmt"

	"dinnerbell/internal/failpoint"
	"dinnerbell/state"
	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
)

// fillStep fills the step with clients, from one consistent view of the state. The view
// is opened after receiveInput, so it is younger than every message of the backlog.
func (d *decider) fillStep(st *step) error {
	if now := d.lane.svc.now().Unix(); now != d.ended {
		d.ended = now
		for _, l := range d.sched.takeEnded(now) {
			if !l.lost.Load() {
				r := st.noteProgress(l, sink.StateFinished)
				r.cutOff, r.audience = true, l.audience.Load()
			}
		}
	}
	if d.isIdle() {
		return nil
	}
	d.forgetCorrected()
	for n := d.countToLastCancel(); n > 0 && d.acceptNext(st); n-- {
	}
	room, paced := d.takeRoom()
	if room == 0 && len(d.latePicks) == 0 && d.lateUpTo == 0 {
		d.acceptAll(st) // none of these is joined in this step, so it needs no view
		return nil
	}
	scan, err := d.openView(st)
	if err != nil {
		return err
	}
	if err = d.serveCampaigns(st, scan, room); err == nil {
		d.noteHandled(st)
	}
	if closeErr := scan.Close(); err == nil {
		err = closeErr
	}
	if paced {
		d.settleRoom(st, room)
	}
	if err != nil {
		return fmt.Errorf("read subscriptions: %w", err)
	}
	return nil
}

// serveCampaigns adds up to room clients to the step: first those of late picks, which
// are few and need no room.
func (d *decider) serveCampaigns(st *step, scan *state.Scan, room int) error {
	late, lateBytes, err := d.pickLate(st, scan)
	if err != nil {
		return err
	}
	if room == 0 {
		return nil
	}
	room, bytes := max(1, room-late), max(1, d.cfg.StepBytes-lateBytes)
	more := func() bool { return bytes > 0 && d.acceptNext(st) }
	return d.sched.serveCampaigns(room, more, func(l *liveCampaign, room int) (int, bool, error) {
		if bytes <= 0 {
			return room, false, nil
		}
		per := l.Size()
		used, exhausted, err := d.pickClients(st, scan, l, max(1, min(room, bytes/per)))
		bytes -= used * per
		return used + 1, exhausted, err
	})
}

// pickClients adds up to room clients of one campaign to the step and moves the
// campaign's cursor.
func (d *decider) pickClients(st *step, scan *state.Scan, l *liveCampaign, room int) (used int, exhausted bool, err error) {
	if l.lost.Load() {
		return 0, true, nil
	}
	if l.refused.Load() {
		st.noteProgress(l, sink.StateFinished).refusal = l.whyRefused()
		return 0, true, nil
	}
	guarded := l.guarded.Load()
	if guarded {
		if room = min(room, d.guardedRoom(st)); room <= 0 {
			l.passedOver = true
			return 0, false, nil
		}
	}
	if err := d.checkReached(scan); err != nil {
		return 0, false, err
	}
	if limit := d.lane.svc.maxAudience.Load(); limit > 0 && !l.admitted {
		if admitted, parked, err := d.admitCampaign(scan, l, limit); err != nil || !admitted {
			if parked {
				failpoint.Hit("decide/parked")
				st.noteParked(l, limit).audience = &l.counted
			}
			return 0, parked, err
		}
	}
	clients := &id.List{}
	if l.fresh {
		clients.Grow(min(room, 16)) // most audiences are small
	} else {
		clients.Grow(room)
	}
	last, done, err := scan.Undelivered(clients, l.delivered, l.restaurant, l.cursor, room)
	if err != nil {
		return 0, false, err
	}
	used = clients.Len()
	all, own := scan.Skipped()
	looked, had := int64(used)+int64(all), int64(all-own)
	l.passed += looked
	if last != "" {
		l.cursor = last
	}
	clients = d.dropUnservable(st, clients, l)
	if clients.Len() > 0 {
		st.picks = append(st.picks, &clientPick{live: l, clients: clients, guarded: guarded})
	}
	st.noteLooked(l, looked, had, done)
	return used, done, nil
}

// noteLooked records in the campaign's row how many clients this step has looked at, and
// those of them who had the campaign from elsewhere. done: no client is left.
func (st *step) noteLooked(l *liveCampaign, looked, had int64, done bool) {
	if !done {
		r := st.noteProgress(l, l.stateOnTheWay())
		r.skipped, r.looked, r.audience = had, looked, l.audience.Load()
		return
	}
	if l.cursor == "" && !l.rejoins { // the restaurant has no client
		st.skipped = append(st.skipped, skippedMessage{kind: skipNoAudience, campaign: l.Campaign, offset: l.from.Offset})
	}
	r := st.noteProgress(l, sink.StateFinished)
	r.skipped, r.looked, r.audience = had, looked, l.audience.Load()
	if l.resumedAt == "" {
		r.audience = &l.passed // it changes no more
	}
}

// dropUnservable removes clients who cannot be notified, since their id does not fit
// the feedback table or a record. The step's dead letters name them.
func (d *decider) dropUnservable(st *step, clients *id.List, l *liveCampaign) *id.List {
	// A record grows by nine bytes at most for each byte of the id, and by six for each
	// byte of the campaign, whose text may be escaped. Only where this estimate is over
	// the limit is the campaign rendered to get the exact size.
	unfit := func(id id.ID) string {
		n := id.TextLen()
		switch {
		case n > campaign.MaxIDBytes:
			return fmt.Sprintf("client ids of more than %d bytes cannot be indexed", campaign.MaxIDBytes)
		case 6*l.Size()+9*n+record.Overhead > d.claim.Limits.Notification && record.NewTemplate(l.Campaign, 0).MaxRecordSize(n)+record.Overhead > d.claim.Limits.Notification:
			return fmt.Sprintf("the notification is larger than the %d bytes that topic %s accepts", d.claim.Limits.Notification, d.cfg.Kafka.Notifications)
		}
		return d.claim.Feedback.ClientMisfit(id)
	}
	for i := range clients.Len() {
		if unfit(clients.At(i)) == "" {
			continue
		}
		kept := &id.List{}
		for j := range clients.Len() {
			if id := clients.At(j); unfit(id) == "" {
				kept.Append(id)
			} else {
				st.leaveOutClient(l, unfit(id), id)
			}
		}
		return kept
	}
	return clients
}
