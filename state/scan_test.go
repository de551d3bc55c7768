package state

import (
	"slices"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state/id"
)

// fillRestaurant inserts one row per client into a restaurant.
func fillRestaurant(t testing.TB, s *Store, end id.LSN, restaurant id.ID, clients []id.ID, firstRow int) {
	t.Helper()
	changes := make([]id.Change, 0, len(clients))
	for i, c := range clients {
		changes = append(changes, id.Change{Op: id.Insert, Row: rowN(firstRow + i), Restaurant: restaurant, Client: c})
	}
	applyChanges(t, s, end, changes...)
}

func texts(list []id.ID) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	out := make([]string, 0, len(list))
	for _, c := range list {
		out = append(out, c.Text())
	}
	return out
}

func mark(t testing.TB, s *Store, name id.ID, clients []id.ID) {
	t.Helper()
	var list id.List
	for _, c := range clients {
		list.Append(c)
	}
	if err := s.MarkDelivered(name, &list, false); err != nil {
		t.Fatal(err)
	}
}

// TestUndelivered checks the merge for every density of delivered pairs and
// every step, beside other restaurants and campaigns.
func TestUndelivered(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), testOptions())
	restaurants := append(makeIDs(2, 1), packID(t, "a"), packID(t, "aa"))
	all := append(makeIDs(200, 2), packID(t, "x"), packID(t, "xx"), packID(t, "\U0010ffff"))
	for i, r := range restaurants {
		fillRestaurant(t, s, id.LSN(i+1), r, all, i*1000)
	}
	fillRestaurant(t, s, 100, restaurants[0], all, 50_000) // second rows of the same pairs
	campaigns := makeIDs(5, 3)
	for i, every := range []int{1, 2, 3, 17, 203} {
		var some, rest []id.ID
		for n, c := range all {
			if n%every == 0 {
				some = append(some, c)
			} else {
				rest = append(rest, c)
			}
		}
		mark(t, s, campaigns[i], some)
		for _, step := range []int{1, 2, 7, 1000} {
			for _, r := range restaurants {
				if got := listClients(t, s, campaigns[i], r, step); !slices.Equal(got, texts(rest)) {
					t.Fatalf("every %d, step %d: %d clients, want %d", every, step, len(got), len(rest))
				}
			}
		}
	}
	if got := listClients(t, s, "", packID(t, "nobody"), 5); got != nil {
		t.Errorf("clients of an unknown restaurant: %q", got)
	}
}

// A call tells the clients that it left out as own from the others.
func TestSkippedTellsOwnClients(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), testOptions())
	restaurant, campaign, all := packID(t, "r"), packID(t, "c"), makeIDs(10, 1)
	fillRestaurant(t, s, 1, restaurant, all, 0)
	mark(t, s, campaign, all[:3])
	var own id.List
	for _, c := range all[3:7] {
		own.Append(c)
	}
	if err := s.MarkDelivered(campaign, &own, true); err != nil {
		t.Fatal(err)
	}
	scan, err := s.NewScan()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = scan.Close() }()
	for range 2 { // each call counts anew
		var left id.List
		if _, _, err := scan.Undelivered(&left, campaign, restaurant, "", 100); err != nil {
			t.Fatal(err)
		}
		if skipped, own := scan.Skipped(); skipped != 7 || own != 4 || left.Len() != 3 {
			t.Errorf("%d left out, %d of them own, %d left; want 7, 4, 3", skipped, own, left.Len())
		}
	}
}

// TestUndeliveredBounded: a long run of notified clients does not hold a call up.
func TestUndeliveredBounded(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), testOptions())
	r, campaign, all := makeIDs(1, 1)[0], makeIDs(1, 2)[0], makeIDs(100, 3)
	fillRestaurant(t, s, 1, r, all, 1)
	mark(t, s, campaign, all)
	scan, err := s.NewScan()
	if err != nil {
		t.Fatal(err)
	}
	defer scan.Close()
	var list id.List
	last, done, err := scan.Undelivered(&list, campaign, r, "", 2)
	if err != nil || done || list.Len() != 0 {
		t.Fatalf("got %d clients, done %v, %v; want a call that stops early", list.Len(), done, err)
	}
	slices.Sort(all)
	if want := all[2*lookRatio-1]; last != want {
		t.Errorf("looked up to %s, want %s", last.Text(), want.Text())
	}
}

// TestScanHolds: a scan reads the rows of the moment when it was made.
func TestScanHolds(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), testOptions())
	r, all := makeIDs(1, 1)[0], makeIDs(50, 2)
	fillRestaurant(t, s, 1, r, all, 1)
	scan, err := s.NewScan()
	if err != nil {
		t.Fatal(err)
	}
	defer scan.Close()
	check := func(when string) {
		t.Helper()
		if got := scanClients(t, scan, "", r, 7); !slices.Equal(got, texts(all)) {
			t.Errorf("after %s: %d clients, want %d", when, len(got), len(all))
		}
	}
	applyChanges(t, s, 2, id.Change{Op: id.Delete, Row: rowN(1)})
	check("a delete")
	applyChanges(t, s, 0, id.Change{Op: id.Truncate})
	check("a truncate in parts")
	applyChanges(t, s, 3)
	check("a truncate")
	loadRows(t, s, 10, []id.ID{r}, 4)
	check("a load")
	if got := listClients(t, s, "", r, 7); len(got) != 10 {
		t.Errorf("a new scan sees %d clients, want 10", len(got))
	}
}

func TestForgetDelivered(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), testOptions())
	r, names, all := makeIDs(1, 1)[0], makeIDs(3, 2), makeIDs(4, 3)
	fillRestaurant(t, s, 1, r, all, 1)
	for i, name := range names {
		mark(t, s, name, all[:i+1])
	}
	want := []int{3, 2, 1} // clients without the campaign, by name
	check := func() {
		t.Helper()
		for i, name := range names {
			if got := listClients(t, s, name, r, 10); len(got) != want[i] {
				t.Errorf("name %d has %d clients to go, want %d", i, len(got), want[i])
			}
		}
	}
	check()
	if err := s.ForgetDelivered(names[1]); err != nil {
		t.Fatal(err)
	}
	want[1] = 4
	check()
	if err := s.ForgetAllDelivered(); err != nil {
		t.Fatal(err)
	}
	want = []int{4, 4, 4}
	check()
}

// Subscribed finds exactly the clients who have a row of the restaurant, as of the scan.
func TestSubscribed(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), testOptions())
	r, other := packID(t, "r"), packID(t, "rr")
	all := append(makeIDs(20, 1), packID(t, "x"), packID(t, "xx"))
	fillRestaurant(t, s, 1, r, all, 1)
	fillRestaurant(t, s, 2, r, all[:5], 100) // second rows
	fillRestaurant(t, s, 3, other, makeIDs(5, 2), 200)
	scan, err := s.NewScan()
	if err != nil {
		t.Fatal(err)
	}
	defer scan.Close()
	applyChanges(t, s, 4, id.Change{Op: id.Delete, Row: rowN(10)})
	if scan.End() != 3 || s.EndLSN() != 4 {
		t.Errorf("the scan ends at %s, the store at %s", scan.End(), s.EndLSN())
	}
	ask := append(slices.Concat(all, makeIDs(5, 2)), packID(t, "xxx"))
	var got id.List
	if err := scan.Subscribed(&got, r, ask); err != nil {
		t.Fatal(err)
	}
	if got.Len() != len(all) {
		t.Errorf("%d of %d are subscribed, want %d", got.Len(), len(ask), len(all))
	}
	for i := range got.Len() {
		if got.At(i) != all[i] {
			t.Errorf("at %d: %s, want %s", i, got.At(i).Text(), all[i].Text())
		}
	}
}

// TestUndeliveredAllocates nothing per client.
func TestUndeliveredAllocates(t *testing.T) {
	s := openStore(t, t.TempDir(), testOptions())
	r := makeIDs(1, 1)[0]
	fillRestaurant(t, s, 1, r, makeIDs(5000, 2), 1)
	scan, err := s.NewScan()
	if err != nil {
		t.Fatal(err)
	}
	defer scan.Close()
	var list id.List
	n := testing.AllocsPerRun(5, func() {
		list.Reset()
		if _, _, err := scan.Undelivered(&list, "", r, "", 5000); err != nil || list.Len() != 5000 {
			t.Fatal(list.Len(), err)
		}
	})
	if n > 500 && !envtest.RaceDetector {
		t.Errorf("%.0f allocations for 5000 clients, want none per client", n)
	}
}

// SimilarRestaurant finds a restaurant whose id SQL may take as equal to the given id.
func TestSimilarRestaurant(t *testing.T) {
	t.Parallel()
	const uuid = "123e4567-e89b-12d3-a456-42661417400a"
	s := openStore(t, t.TempDir(), testOptions())
	for i, restaurant := range []string{uuid, "rest_1    ", "rest_1 b", "Café", "plain", "{A}"} {
		fillRestaurant(t, s, id.LSN(i+1), packID(t, restaurant), makeIDs(1, 7), 10*i)
	}
	for ask, want := range map[string]string{
		strings.ToUpper(uuid):                 uuid,
		"{" + uuid + "}":                      uuid,
		strings.ReplaceAll(uuid, "-", ""):     uuid,
		uuid + "   ":                          uuid,
		"rest_1":                              "rest_1    ",
		"REST_1":                              "rest_1    ",
		"plain ":                              "plain",
		"PLAIN":                               "plain",
		uuid:                                  "",
		"rest_":                               "",
		"rest_1 ":                             "rest_1    ",
		"other":                               "",
		" ":                                   "",
		"{}":                                  "",
		"{a}":                                 "{A}",
		"123e4567-e89b-12d3-a456-42661417400": "",
	} {
		got, found, err := s.SimilarRestaurant(ask)
		if err != nil || got != want || found != (want != "") {
			t.Errorf("%q: %q, %t, %v; want %q", ask, got, found, err, want)
		}
	}
}
