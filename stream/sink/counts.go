package sink

import "dinnerbell/stream/campaign"

// RowCounts is what a row of the campaign table counts.
type RowCounts struct {
	Audience int64 // subscribers of the restaurant; -1: not counted
	Notified int64 // over all versions
	Already  int64 // clients who were left out because they had the campaign from elsewhere
}

// Met counts the clients who have the campaign now, or had it from elsewhere. Some of them
// may have unsubscribed or subscribed since the audience was counted.
func (c RowCounts) Met() int64 { return c.Notified + c.Already }

// StepCounts holds the counts of the campaign rows that a step has changed, as they are
// after the step: Postgres returns them with the change. The rows that the step has
// inserted are not among them.
type StepCounts struct {
	edits, moves, late countedRows
}

// countedRows are the rows of one statement, in its order.
type countedRows struct {
	campaigns, restaurants       []string
	notified, already, audiences []int64
}

// resultColumns returns the pointers for the answer of a statement made by expectCounts.
func (r *countedRows) resultColumns() []any { return []any{nil, &r.notified, &r.already, &r.audiences} }

// EachRow calls fn for each row that the step has edited or moved on.
func (s *StepCounts) EachRow(fn func(campaign.Key, RowCounts)) {
	s.edits.eachCount(fn)
	s.moves.eachCount(fn)
}

// EachLate calls fn for each row to which the step has added late subscribers. The counts
// include what the step did to the row before that.
func (s *StepCounts) EachLate(fn func(campaign.Key, RowCounts)) { s.late.eachCount(fn) }

func (r *countedRows) eachCount(fn func(campaign.Key, RowCounts)) {
	for i, notified := range r.notified {
		fn(campaign.Key{Campaign: r.campaigns[i], Restaurant: r.restaurants[i]}, RowCounts{Audience: r.audiences[i], Notified: notified, Already: r.already[i]})
	}
}
