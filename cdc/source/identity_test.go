package source

import (
	"maps"
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	was := ParseIdentity("text 1;table 6;kind r;columns 1:23,2:25;labels -;versions 7,8;relations 11;files 12;publication 9;published 13/-/14")
	for _, c := range []struct {
		change map[string]string
		want   Verdict
		why    string
	}{
		{nil, RowsCurrent, ""},
		{map[string]string{"versions": "7,9"}, RowsCurrent, ""},
		{map[string]string{"files": "99"}, RowsCurrent, ""},
		{map[string]string{"files": "99", "versions": "7,9"}, RowsOutdated, "altered"},
		{map[string]string{"kind": "p", "files": "99"}, RowsOutdated, "truncated"},
		{map[string]string{"relations": "99"}, RowsOutdated, "attached"},
		{map[string]string{"columns": "1:20,2:25"}, RowsOutdated, "1:20,2:25, were 1:23,2:25"},
		{map[string]string{"labels": "99"}, RowsOutdated, "enum"},
		{map[string]string{"schemas": noSchemas, "links": "99"}, StreamLost, "attached again"},
		{map[string]string{"schemas": noSchemas, "published": "99/-/14"}, RowsOutdated, "publication was changed"},
		{map[string]string{"published": "13/-/99"}, RowsOutdated, "another parent"},
		{map[string]string{"schemas": noSchemas, "published": "13/-/99"}, StreamLost, "another parent"},
		{map[string]string{"text": "2"}, RowsOutdated, "other settings"},
		{map[string]string{"table": "7"}, StreamLost, "made again (oid 7, was 6)"},
		{map[string]string{"publication": "8"}, StreamLost, "made again (oid 8, was 9)"},
	} {
		now := maps.Clone(was)
		maps.Copy(now, c.change)
		if got, why := was.compareItems(now); got != c.want || !strings.Contains(why, c.why) || (c.why == "") != (why == "") {
			t.Errorf("%v is judged %d %q, want %d %q", c.change, got, why, c.want, c.why)
		}
	}
	if got, why := ParseIdentity("text 1;table 6 d;column 1 id 23 745;publication 9 745").compareItems(was); got != RowsOutdated || !strings.Contains(why, "older version") {
		t.Errorf("a state of the format before is judged %d %q", got, why)
	}
}

func TestEmitFunctionIsNamedAsTheServerHasIt(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]string{
		"14.2": "pg_logical_emit_message(boolean,text,text)", "15.18 (Debian 15.18-1)": "pg_logical_emit_message(boolean,text,text)",
		"17beta1": "pg_logical_emit_message(boolean,text,text,boolean)", "18.1": "pg_logical_emit_message(boolean,text,text,boolean)",
	} {
		if got := emitFunction(version); got != want {
			t.Errorf("%s: %s, want %s", version, got, want)
		}
	}
}
