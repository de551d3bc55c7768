package state

import (
	"strings"
	"testing"

	"dinnerbell/state/id"
)

// A restaurant that SQL may take for the one that is asked for is found.
func TestSimilarRestaurant(t *testing.T) {
	t.Parallel()
	const uuid = "123e4567-e89b-12d3-a456-42661417400a"
	s := openStore(t, t.TempDir(), testOptions())
	for i, restaurant := range []string{uuid, "rest_1    ", "rest_1 b", "Café", "plain", "{A}"} {
		fill(t, s, id.LSN(i+1), packID(t, restaurant), ids(1, 7), 10*i)
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
