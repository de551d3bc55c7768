package stream

import "sync/atomic"

// Counts are what this service did since it was made, over all lanes that it has
// or had. They never fall: a lane that leaves takes its own totals along
// (Status.Campaigns, Status.Notifications), and these stay.
type Counts struct {
	Decided         int64 // notifications that this service committed in Postgres
	Shipped         int64 // notifications that it committed in Kafka, also of an earlier owner's steps
	Expired         int64 // campaigns that came after their end, cancels included
	Dead            int64 // messages that went to the dead letters
	Older           int64 // messages that did nothing: a newer one of their campaign was there
	WithoutAudience int64 // campaigns of a restaurant that nobody subscribes to
	Conflicts       int64 // steps that met clients whom the delivered cache did not know
	DeliveredMisses int64 // clients whom Postgres knew and the delivered cache did not
	Unservable      int64 // clients left out because the feedback table or the topic cannot take them; dead letters name them
}

// Add gives the sum of both.
func (c Counts) Add(o Counts) Counts {
	return Counts{
		Decided: c.Decided + o.Decided, Shipped: c.Shipped + o.Shipped, Expired: c.Expired + o.Expired, Dead: c.Dead + o.Dead,
		Older: c.Older + o.Older, WithoutAudience: c.WithoutAudience + o.WithoutAudience, Conflicts: c.Conflicts + o.Conflicts,
		DeliveredMisses: c.DeliveredMisses + o.DeliveredMisses, Unservable: c.Unservable + o.Unservable,
	}
}

// counters are the Counts while they rise.
type counters struct {
	decided, shipped, expired, dead, older, withoutAudience, conflicts, deliveredMisses, unservable atomic.Int64
}

func (c *counters) snapshot() Counts {
	return Counts{
		Decided: c.decided.Load(), Shipped: c.shipped.Load(), Expired: c.expired.Load(), Dead: c.dead.Load(),
		Older: c.older.Load(), WithoutAudience: c.withoutAudience.Load(), Conflicts: c.conflicts.Load(),
		DeliveredMisses: c.deliveredMisses.Load(), Unservable: c.unservable.Load(),
	}
}
