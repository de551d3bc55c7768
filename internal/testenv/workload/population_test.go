package workload

import (
	"regexp"
	"slices"
	"testing"
)

// TestPopulation: every restaurant has each of its clients once, Row and Audience
// agree, and ids are UUIDs.
func TestPopulation(t *testing.T) {
	t.Parallel()
	p := NewPopulation(80, Group{Kind: "large", Audience: 40, Restaurants: 2}, Group{Kind: "small", Audience: 3, Restaurants: 5})
	if p.Rows() != 95 {
		t.Fatalf("%d rows, want 95", p.Rows())
	}
	byRestaurant := map[int][]string{}
	for n := range p.Rows() {
		client, restaurant := p.Row(n)
		byRestaurant[restaurant] = append(byRestaurant[restaurant], ClientID(client))
	}
	if len(byRestaurant) != 7 {
		t.Errorf("%d restaurants, want 7", len(byRestaurant))
	}
	for _, g := range p.Groups() {
		for i := range g.Restaurants {
			got, want := byRestaurant[g.FirstRestaurant()+i], p.Audience(g, i)
			slices.Sort(got)
			if !slices.Equal(got, want) || len(slices.Compact(got)) != g.Audience {
				t.Errorf("restaurant %d of %s: rows have %v, the audience is %v", i, g.Kind, got, want)
			}
		}
	}
	form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	for _, id := range []string{ClientID(1), RestaurantID(1), CampaignID(1)} {
		if !form.MatchString(id) {
			t.Errorf("%s is no version 4 UUID", id)
		}
	}
	if _, ok := p.Group("huge"); ok {
		t.Error("a group that was not given is there")
	}
}
