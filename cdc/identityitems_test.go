package cdc

import (
	"maps"
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	was := parseIdentity("text 1;table 6;kind r;columns 1:23,2:25;labels -;versions 7,8;relations 11;files 12;publication 9;published 13/-/14")
	for _, c := range []struct {
		change map[string]string
		want   rowsVerdict
		why    string
	}{
		{nil, rowsCurrent, ""},
		{map[string]string{"versions": "7,9"}, rowsCurrent, ""},
		{map[string]string{"files": "99"}, rowsCurrent, ""},
		{map[string]string{"files": "99", "versions": "7,9"}, rowsOutdated, "altered"},
		{map[string]string{"kind": "p", "files": "99"}, rowsOutdated, "truncated"},
		{map[string]string{"relations": "99"}, rowsOutdated, "attached"},
		{map[string]string{"columns": "1:20,2:25"}, rowsOutdated, "1:20,2:25, were 1:23,2:25"},
		{map[string]string{"labels": "99"}, rowsOutdated, "enum"},
		{map[string]string{"schemas": noSchemas, "links": "99"}, streamLost, "attached again"},
		{map[string]string{"schemas": noSchemas, "published": "99/-/14"}, rowsOutdated, "publication was changed"},
		{map[string]string{"published": "13/-/99"}, rowsOutdated, "another parent"},
		{map[string]string{"schemas": noSchemas, "published": "13/-/99"}, streamLost, "another parent"},
		{map[string]string{"text": "2"}, rowsOutdated, "other settings"},
		{map[string]string{"table": "7"}, streamLost, "made again (oid 7, was 6)"},
		{map[string]string{"publication": "8"}, streamLost, "made again (oid 8, was 9)"},
	} {
		now := maps.Clone(was)
		maps.Copy(now, c.change)
		if got, why := was.compareItems(now); got != c.want || !strings.Contains(why, c.why) || (c.why == "") != (why == "") {
			t.Errorf("%v is judged %d %q, want %d %q", c.change, got, why, c.want, c.why)
		}
	}
	if got, why := parseIdentity("text 1;table 6 d;column 1 id 23 745;publication 9 745").compareItems(was); got != rowsOutdated || !strings.Contains(why, "older version") {
		t.Errorf("a state of the format before is judged %d %q", got, why)
	}
}
