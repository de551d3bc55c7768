package status

import (
	"strings"
	"testing"
	"time"

	"dinnerbell/stream"
)

// Each step is one look at the daemon; the last one's reasons are checked.
func TestStalls(t *testing.T) {
	t.Parallel()
	type look struct {
		after            time.Duration
		lsn              string
		lag              int64
		decided, shipped int64
	}
	for name, tc := range map[string]struct {
		looks []look
		want  []string
	}{
		"nothing to do":      {[]look{{0, "0/1", 0, 5, 5}, {time.Hour, "0/1", 0, 5, 5}}, nil},
		"source moves":       {[]look{{0, "0/1", 9, 5, 5}, {time.Hour, "0/2", 9, 5, 5}}, nil},
		"source just late":   {[]look{{0, "0/1", 9, 5, 5}, {29 * time.Second, "0/1", 9, 5, 5}}, nil},
		"source stands":      {[]look{{0, "0/1", 9, 5, 5}, {30 * time.Second, "0/1", 12, 5, 5}}, []string{"source: 12 bytes behind"}},
		"source was idle":    {[]look{{0, "0/1", 0, 5, 5}, {time.Hour, "0/1", 0, 5, 5}, {time.Second, "0/1", 9, 5, 5}}, nil},
		"lane moves":         {[]look{{0, "0/1", 0, 6, 5}, {time.Hour, "0/1", 0, 9, 6}}, nil},
		"lane stands":        {[]look{{0, "0/1", 0, 6, 5}, {time.Minute, "0/1", 0, 9, 5}}, []string{"lane 3: step 9 is decided, 5 is shipped"}},
		"lane goes on again": {[]look{{0, "0/1", 0, 6, 5}, {time.Minute, "0/1", 0, 9, 5}, {time.Second, "0/1", 0, 9, 7}}, nil},
		"both": {[]look{{0, "0/1", 1, 6, 5}, {time.Minute, "0/1", 1, 6, 5}},
			[]string{"source: 1 bytes behind", "lane 3: step 6"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s StallDetector
			var got []string
			now := time.Unix(1_000_000, 0)
			for _, l := range tc.looks {
				now = now.Add(l.after)
				got = s.Reasons(now, &Report{
					Source: Source{AppliedLSN: l.lsn, LagBytes: &l.lag},
					Lanes:  []Lane{{Partition: 3, Decided: l.decided, Shipped: l.shipped}},
				})
			}
			if len(got) != len(tc.want) {
				t.Fatalf("reasons %q, want %q", got, tc.want)
			}
			for i, want := range tc.want {
				if !strings.HasPrefix(got[i], want) {
					t.Errorf("reason %q, want %q…", got[i], want)
				}
			}
		})
	}
}

// A group is silent for ever about a topic that does not exist, so that is where
// the mending command is wanted.
func TestSilentGroupNamesTheMissingTopic(t *testing.T) {
	t.Parallel()
	if got := laneReasons(stream.Status{}); len(got) != 1 || !strings.Contains(got[0], "`dinnerbell setup`") {
		t.Errorf("%q", got)
	}
}
