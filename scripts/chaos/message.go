package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// author draws campaigns. It remembers those that were sent, to repeat and edit
// them.
type author struct {
	rnd        *rand.Rand
	partitions int32
	sent       []sent // newest per key, in order of their first message
	serial     int
}

type sent struct {
	fields
	partition int32
}

// The kinds of messages and how often each is drawn.
var messageKinds = []struct {
	name   string
	weight int
}{
	{"small", 30}, {"huge", 10}, {"repeat", 10}, {"edit", 14}, {"back", 4}, {"cancel", 9}, {"sibling", 8},
	{"expired", 3}, {"ending", 6}, {"soon", 7}, {"far", 2}, {"postpone", 3}, {"malformed", 8},
}

var messageWeights = func() []int {
	out := make([]int, len(messageKinds))
	for i, k := range messageKinds {
		out[i] = k.weight
	}
	return out
}()

// next draws a message and how it is sent. now is a Unix second.
func (a *author) next(now int64) *message {
	m := a.one(now)
	switch {
	case a.rnd.IntN(6) == 0:
		m.Transaction, m.Aborted = true, a.rnd.IntN(3) == 0
	case m.Kind == "huge" && a.rnd.IntN(3) == 0:
		m.Repeats = 20 + a.rnd.IntN(30)
	}
	return m
}

func (a *author) one(now int64) *message {
	kind := messageKinds[odds(a.rnd, messageWeights)].name
	if kind == "malformed" {
		return &message{Kind: kind, Partition: a.anyPartition(), Value: a.malformed(now)}
	}
	if len(a.sent) == 0 {
		switch kind {
		case "repeat", "edit", "back", "cancel", "sibling", "postpone":
			kind = "small"
		}
	}
	f, partition := a.draw(kind, now)
	return &message{Kind: kind, Partition: partition, Value: a.encode(f), Fields: &f}
}

// draw makes the fields of a well-formed message.
func (a *author) draw(kind string, now int64) (fields, int32) {
	hour := int64(lasting / time.Second)
	switch kind {
	case "repeat", "edit", "back", "cancel", "postpone":
		return a.again(kind, now)
	case "sibling": // the same campaign for another restaurant
		f := a.sent[a.rnd.IntN(len(a.sent))].fields
		f.Restaurant = restaurantName(a.rnd.IntN(restaurants))
		for _, s := range a.sent {
			if s.Campaign == f.Campaign && s.Restaurant == f.Restaurant {
				return a.again("edit", now)
			}
		}
		f.Content += " (sibling)"
		f.Start, f.End = now-10, now+hour
		return a.note(f, a.anyPartition())
	}
	f := a.fresh(now)
	switch kind {
	case "huge":
		f.Restaurant = restaurantName(0)
	case "expired":
		f.Start, f.End = now-100, now-a.rnd.Int64N(5)
	case "ending":
		f.End = now + 1 + a.rnd.Int64N(4)
	case "soon":
		f.Start = now + 1 + a.rnd.Int64N(4)
	case "far":
		f.Start, f.End = now+2*hour, now+3*hour
	}
	return a.note(f, a.anyPartition())
}

// again draws another message for a key that had one: half of them on another
// partition.
func (a *author) again(kind string, now int64) (fields, int32) {
	i := max(0, len(a.sent)-1-a.rnd.IntN(15)) // a recent one: it may be under way
	s := &a.sent[i]
	before := s.fields
	hour := int64(lasting / time.Second)
	switch kind {
	case "edit":
		s.Content = fmt.Sprintf("%s, edited %d", strings.SplitN(s.Content, ",", 2)[0], a.number())
		s.Start, s.End = min(s.Start, now), now+hour
	case "back": // an edit to what an earlier message said
		s.Content = strings.SplitN(s.Content, ",", 2)[0]
		s.Start, s.End = s.Created-10, s.Created+hour
	case "cancel":
		s.End = min(s.End, now-1)
		s.Start = min(s.Start, s.End-1)
	case "postpone":
		s.Start = now + 1 + a.rnd.Int64N(3)
		s.End = now + hour
	}
	partition := s.partition
	if a.rnd.IntN(2) == 0 {
		partition = a.anyPartition()
	}
	if kind != "repeat" && s.fields != before {
		s.partition = partition
	}
	return s.fields, partition
}

func (a *author) note(f fields, partition int32) (fields, int32) {
	a.sent = append(a.sent, sent{f, partition})
	return f, partition
}

func (a *author) anyPartition() int32 { return a.rnd.Int32N(a.partitions) }

func (a *author) number() int {
	a.serial++
	return a.serial
}

// fresh is a new campaign that is valid now and lasts.
func (a *author) fresh(now int64) fields {
	n := a.number()
	f := fields{
		Restaurant: restaurantName(1 + a.rnd.IntN(restaurants-1)),
		Campaign:   fmt.Sprintf("campaign-%d", n),
		Content:    fmt.Sprintf("offer %d <b>\"–20%%\"</b> & \u2028more \\ \t", n),
		Owner:      "Ivanov Ivan Ivanovich",
		Contact:    "iiivanov@restaurant.ru",
		Start:      now - 10, End: now + int64(lasting/time.Second), Created: now,
	}
	if n%7 == 3 {
		f.Campaign = fmt.Sprintf("скидка:%d%%", n)
	}
	return f
}

// encode writes the JSON in one of the ways that are allowed.
func (a *author) encode(f fields) []byte {
	text, err := json.Marshal(f)
	if err != nil { // cannot happen: strings and integers
		return nil
	}
	switch a.rnd.IntN(4) {
	case 0: // unknown fields are ignored
		return append([]byte(`{"unknown":{"a":[1,null]},`), text[1:]...)
	case 1:
		return []byte(strings.ReplaceAll(string(text), `,"`, ",\n\t\""))
	}
	return text
}

// malformed breaks a campaign in one of the ways that the contract lists.
func (a *author) malformed(now int64) []byte {
	f := a.fresh(now)
	f.Content = fmt.Sprintf("broken %d", f.Created)
	good := string(a.must(f))
	cases := []string{
		"not JSON " + f.Campaign, good[:len(good)-1], "[" + good + "]", `"` + f.Campaign + `"`, "null", "",
		strings.Replace(good, `"adv_campaign_owner":`, `"owner":`, 1),
		strings.Replace(good, `"Ivanov Ivan Ivanovich"`, `null`, 1),
		strings.Replace(good, `"Ivanov Ivan Ivanovich"`, `7`, 1),
		strings.Replace(good, fmt.Sprint(f.End), fmt.Sprintf(`"%d"`, f.End), 1),
		strings.Replace(good, fmt.Sprint(f.End), fmt.Sprintf(`%d.5`, f.End), 1),
		strings.Replace(good, fmt.Sprint(f.End), fmt.Sprint(f.Start), 1),
		strings.Replace(good, fmt.Sprint(f.End), fmt.Sprint(f.End*1000), 1),
		strings.Replace(good, `"broken`, `"\u0000broken`, 1),
		strings.Replace(good, `"broken`, "\"\xffbroken", 1),
		string(a.must(fields{Restaurant: f.Restaurant, Content: "x", Start: f.Start, End: f.End})),
	}
	return []byte(cases[a.rnd.IntN(len(cases))])
}

func (a *author) must(f fields) []byte {
	text, err := json.Marshal(f)
	if err != nil { // cannot happen
		return nil
	}
	return text
}
