package stream

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"dinnerbell/stream/campaign"
)

// Scenarios are scripts in testdata/scenarios: what happens at which second, and what
// comes of it. A file holds several, each below a line "# what it shows". A scenario
// begins at second 0 with no subscription and a daemon that runs. Its lines:
//
//	at SECOND                                    the clock shows this second from now on
//	subscribe CLIENT… to RESTAURANT              each committed and mirrored at once
//	unsubscribe CLIENT… from RESTAURANT          1..9 are nine clients
//	send CAMPAIGN to RESTAURANT from SECOND until SECOND [text WORD] [on LANE] [stamped SECOND]
//	                                             a message: the first, an edit, a repeat or a cancel
//	cancel|pause|resume|approve CAMPAIGN [for RESTAURANT]   by an operator
//	barrier shut|open                            of freshness
//	late subscribers                             are served (join.late_subscribers); the first line
//	stop, start                                  the daemon; what is sent meanwhile waits
//	restart                                      both
//	expect CAMPAIGN: CLIENT…|nobody              who has it by now
//	expect CAMPAIGN for RESTAURANT is STATE      of its row
//
// These lines are for virtual time alone. A scenario that has one of them is left out
// on real servers:
//
//	step of N                                    clients of a step; none is taken before the next two lines
//	steps N                                      so many steps are taken, and then none
//	run                                          steps are taken as they come
//	expect CAMPAIGN has N                        number of clients
//
// [TestScenarios] plays all scripts on virtual time: the decider, the schedule, the
// start times and the rules of package campaign are the daemon's, and the sinks are
// maps. [TestScenariosOnRealServers] plays them on Postgres and Kafka.
type scenario struct {
	name  string
	lines []scenarioLine
}

type scenarioLine struct {
	number int // in the file
	text   string
	words  []string
}

// scenarioWorld is what a scenario happens in. Its methods return when everything that
// follows from the line has happened.
type scenarioWorld interface {
	at(second int64)
	subscribe(client, restaurant string)
	unsubscribe(client, restaurant string)
	send(m *scenarioMessage)
	operate(action, id, restaurant string)
	barrier(open bool)
	stop()
	start()
	settle()
	clientsOf(id string) []string
	stateOf(k campaign.Key) string
}

// scenarioSteps is implemented by worlds in which single steps can be taken.
type scenarioSteps interface {
	stepOf(clients int)
	steps(n int) // negative: without limit
}

type scenarioMessage struct {
	campaign.Campaign
	lane    int32
	stamped int64 // second at whose beginning it is stamped; -1: now
}

// readScenarios reads a file of scripts.
func readScenarios(t *testing.T, path string) (list []*scenario) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var name strings.Builder
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		line = strings.TrimSpace(line)
		if title, ok := strings.CutPrefix(line, "# "); ok {
			if name.Len() > 0 {
				name.WriteByte(' ')
			}
			name.WriteString(title)
			continue
		}
		if name.Len() > 0 {
			list = append(list, &scenario{name: name.String()})
			name.Reset()
		}
		if line == "" {
			continue
		}
		if len(list) == 0 {
			t.Fatalf("%s: it does not begin with \"# what it shows\"", path)
		}
		s := list[len(list)-1]
		s.lines = append(s.lines, scenarioLine{number: number, text: line, words: strings.Fields(line)})
	}
	return list
}

// allScenarios reads the scripts of all files.
func allScenarios(t *testing.T) (list []*scenario) {
	t.Helper()
	paths, err := filepath.Glob("testdata/scenarios/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, path := range paths {
		for _, s := range readScenarios(t, path) {
			s.name = filepath.Base(path) + "/" + s.name
			list = append(list, s)
		}
	}
	return list
}

// forVirtualTime reports whether the scenario has a line for virtual time alone.
func (s *scenario) forVirtualTime() bool {
	return slices.ContainsFunc(s.lines, func(l scenarioLine) bool {
		return l.words[0] == "step" || l.words[0] == "steps" || l.words[0] == "run" || len(l.words) == 4 && l.words[0] == "expect" && l.words[2] == "has"
	})
}

// servesLate reports whether late subscribers are served.
func (s *scenario) servesLate() bool { return s.lines[0].text == "late subscribers" }

// play does what the lines say, and fails the test at the first one that does not come
// true.
func (s *scenario) play(t *testing.T, w scenarioWorld) {
	t.Helper()
	lines := s.lines
	if s.servesLate() {
		lines = lines[1:]
	}
	for _, l := range lines {
		if err := l.play(w); err != nil {
			t.Fatalf("line %d: %s: %v", l.number, l.text, err)
		}
	}
}

func (l *scenarioLine) play(w scenarioWorld) error {
	verb, args := l.words[0], l.words[1:]
	switch verb {
	case "at":
		second, err := strconv.ParseInt(strings.Join(args, " "), 10, 64)
		if err != nil {
			return err
		}
		w.at(second)
	case "subscribe", "unsubscribe":
		if len(args) < 3 || args[len(args)-2] != "to" && args[len(args)-2] != "from" {
			return fmt.Errorf("want: %s CLIENT… to|from RESTAURANT", verb)
		}
		change := w.subscribe
		if verb == "unsubscribe" {
			change = w.unsubscribe
		}
		for _, name := range args[:len(args)-2] {
			first, last := 0, 0
			if !scans(name, "%d..%d", &first, &last) {
				change(name, args[len(args)-1])
				continue
			}
			for ; first <= last; first++ {
				change(strconv.Itoa(first), args[len(args)-1])
			}
		}
	case "send":
		m, err := parseScenarioMessage(l.text)
		if err != nil {
			return err
		}
		w.send(m)
	case "cancel", "pause", "resume", "approve":
		if len(args) != 1 && len(args) != 3 {
			return fmt.Errorf("want: %s CAMPAIGN [for RESTAURANT]", verb)
		}
		restaurant := ""
		if len(args) == 3 {
			restaurant = args[2]
		}
		w.operate(verb, args[0], restaurant)
	case "barrier":
		w.barrier(args[0] == "open")
	case "stop":
		w.stop()
	case "start":
		w.start()
	case "restart":
		w.stop()
		w.start()
	case "step", "steps", "run":
		return l.playSteps(w)
	case "expect":
		return l.expect(w)
	default:
		return fmt.Errorf("no such line")
	}
	w.settle()
	return nil
}

func (l *scenarioLine) playSteps(w scenarioWorld) error {
	s, ok := w.(scenarioSteps)
	if !ok {
		return fmt.Errorf("single steps cannot be taken here")
	}
	var n int
	switch {
	case l.text == "run":
		s.steps(-1)
	case scans(l.text, "step of %d", &n):
		s.stepOf(n)
		return nil
	case scans(l.text, "steps %d", &n):
		s.steps(n)
	default:
		return fmt.Errorf("want: step of N, steps N or run")
	}
	w.settle()
	return nil
}

func (l *scenarioLine) expect(w scenarioWorld) error {
	args := l.words[1:]
	var n int
	var k campaign.Key
	var state string
	switch {
	case len(args) > 1 && strings.HasSuffix(args[0], ":"):
		got, want := w.clientsOf(strings.TrimSuffix(args[0], ":")), args[1:]
		slices.Sort(got)
		slices.Sort(want)
		if want[0] == "nobody" {
			want = nil
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("it has been sent to %v", got)
		}
	case scans(l.text, "expect %s for %s is %s", &k.Campaign, &k.Restaurant, &state):
		if got := w.stateOf(k); got != state {
			return fmt.Errorf("it is %q", got)
		}
	case scans(l.text, "expect %s has %d", &k.Campaign, &n):
		if got := len(w.clientsOf(k.Campaign)); got != n {
			return fmt.Errorf("it has been sent to %d", got)
		}
	default:
		return fmt.Errorf("no such expectation")
	}
	return nil
}

// scans reports whether the whole text has a form of fmt.Sscanf.
func scans(text, form string, values ...any) bool {
	_, err := fmt.Sscanf(text, form, values...)
	return err == nil && len(strings.Fields(text)) == len(strings.Fields(form))
}

func parseScenarioMessage(text string) (*scenarioMessage, error) {
	m := &scenarioMessage{stamped: -1}
	m.Content = "text"
	if _, err := fmt.Sscanf(text, "send %s to %s from %d until %d", &m.ID, &m.RestaurantID, &m.Start, &m.End); err != nil {
		return nil, err
	}
	rest := strings.Fields(text)[8:]
	for ; len(rest) >= 2; rest = rest[2:] {
		n, err := strconv.ParseInt(rest[1], 10, 64)
		switch rest[0] {
		case "text":
			m.Content, err = rest[1], nil
		case "on":
			m.lane = int32(n)
		case "stamped":
			m.stamped = n
		default:
			err = fmt.Errorf("no word %q", rest[0])
		}
		if err != nil {
			return nil, err
		}
	}
	if len(rest) > 0 {
		return nil, fmt.Errorf("nothing follows %q", rest[0])
	}
	return m, nil
}
