package stream

import "testing"

// Two transactions of one lane are open at a time. Neither may wait for a row of
// the other: see decision.followedBy.
func TestRowsGoAheadOnlyWhereTheyCannotMeet(t *testing.T) {
	t.Parallel()
	build := func(contested bool, campaigns ...*Campaign) *step {
		st := newStep()
		for _, c := range campaigns {
			st.picks = append(st.picks, &pick{live: &live{Campaign: c}, contested: contested})
		}
		return st
	}
	one := &Campaign{ID: "c1", RestaurantID: "r1"}
	sameID := &Campaign{ID: "c1", RestaurantID: "r2"}
	other := &Campaign{ID: "c2", RestaurantID: "r1"}
	for name, c := range map[string]struct {
		before, after *step
		ahead         bool
	}{
		"another campaign":                       {build(false, one), build(false, other), true},
		"the same campaign goes on":              {build(false, one), build(false, one, other), true},
		"the same id for another restaurant":     {build(false, other, one), build(false, sameID), false},
		"a step that is contested":               {build(false, one), build(true, other), false},
		"behind a step that is contested":        {build(true, one), build(false, other), false},
		"a step without clients, behind another": {build(false, one), build(false), true},
	} {
		before := firstDecision().followedBy(1, c.before)
		if !before.turn() {
			t.Errorf("%s: the first step has to wait", name)
		}
		after := before.followedBy(2, c.after)
		if after.ahead != c.ahead || after.turn() {
			t.Errorf("%s: ahead %t, turn %t; want %t and not its turn", name, after.ahead, after.turn(), c.ahead)
		}
		close(before.done)
		if !after.turn() {
			t.Errorf("%s: still not its turn", name)
		}
	}
}
